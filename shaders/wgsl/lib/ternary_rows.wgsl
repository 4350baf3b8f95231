// Sums of ternary codes 0..2 times int8 activations: four rows of w with ROWS rows of activations, minus the
// sums of the activations, which codes t + 1 add once too often.
//
// T1: words of 20 codes, five in a byte (1.6 bits), else of 16 in two bits. VEC: rows of w are whole 16
// bytes, and so are loads. The file that includes this declares w, array<u32> or with VEC
// array<vec4<u32>>, and activations(i, at): with T1 the word `at` of row i of the activations, else the
// four words that word `at` of a row of w meets.

//!if ROWS == 1
const ROWS: u32 = 1u;
//!else
const ROWS: u32 = 4u;
//!endif

// Of each row of activations with the four rows of w.
var<private> acc: array<vec4<i32>, ROWS>;

fn dots(codes: vec4<u32>, x: u32) -> vec4<i32> {
    return vec4<i32>(dot4I8Packed(codes.x, x), dot4I8Packed(codes.y, x),
        dot4I8Packed(codes.z, x), dot4I8Packed(codes.w, x));
}

//!if T1
fn add_word(words: vec4<u32>, at: u32) {
    // A byte is its digits in fixed point: times 3, a digit moves above it. Bytes in lanes of 16 bits.
    var even = words & vec4<u32>(0x00ff00ffu);
    var odd = (words >> vec4<u32>(8u)) & vec4<u32>(0x00ff00ffu);
    for (var s = 0u; s < 5u; s++) {
        even *= 3u;
        odd *= 3u;
        let codes = ((even >> vec4<u32>(8u)) & vec4<u32>(0x00ff00ffu)) | (odd & vec4<u32>(0xff00ff00u));
        even &= vec4<u32>(0x00ff00ffu);
        odd &= vec4<u32>(0x00ff00ffu);
        for (var i = 0u; i < ROWS; i++) {
            let x = activations(i, 5u * at + s);
            acc[i] += dots(codes, x) - vec4<i32>(dot4I8Packed(x, 0x01010101u));
        }
    }
}
//!else
// Byte i of each word: the activations that the codes at bits 2i of the four bytes of a word meet.
fn columns(x: vec4<u32>) -> vec4<u32> {
    let even_a = (x.x & 0x00ff00ffu) | ((x.y & 0x00ff00ffu) << 8u);
    let odd_a = ((x.x >> 8u) & 0x00ff00ffu) | (x.y & 0xff00ff00u);
    let even_b = (x.z & 0x00ff00ffu) | ((x.w & 0x00ff00ffu) << 8u);
    let odd_b = ((x.z >> 8u) & 0x00ff00ffu) | (x.w & 0xff00ff00u);
    return vec4<u32>((even_a & 0xffffu) | (even_b << 16u), (odd_a & 0xffffu) | (odd_b << 16u),
        (even_a >> 16u) | (even_b & 0xffff0000u), (odd_a >> 16u) | (odd_b & 0xffff0000u));
}

fn add_word(words: vec4<u32>, at: u32) {
    let mask = vec4<u32>(0x03030303u);
    let first = words & mask;
    let second = (words >> vec4<u32>(2u)) & mask;
    let third = (words >> vec4<u32>(4u)) & mask;
    let fourth = (words >> vec4<u32>(6u)) & mask;
    for (var i = 0u; i < ROWS; i++) {
        let x = columns(activations(i, at));
        let sum = dot4I8Packed(x.x, 0x01010101u) + dot4I8Packed(x.y, 0x01010101u)
            + dot4I8Packed(x.z, 0x01010101u) + dot4I8Packed(x.w, 0x01010101u);
        acc[i] += dots(first, x.x) + dots(second, x.y) + dots(third, x.z) + dots(fourth, x.w) - vec4<i32>(sum);
    }
}
//!endif

// Adds the words first..end of rows of w that begin at these words, every LANES-th of them from `lane` on.
fn add_words(lane: u32, rows: vec4<u32>, first: u32, end: u32) {
//!if VEC
    for (var at = first / 4u + lane; at < end / 4u; at += LANES) {
        let a = w[rows.x / 4u + at];
        let b = w[rows.y / 4u + at];
        let c = w[rows.z / 4u + at];
        let d = w[rows.w / 4u + at];
        add_word(vec4<u32>(a.x, b.x, c.x, d.x), 4u * at);
        add_word(vec4<u32>(a.y, b.y, c.y, d.y), 4u * at + 1u);
        add_word(vec4<u32>(a.z, b.z, c.z, d.z), 4u * at + 2u);
        add_word(vec4<u32>(a.w, b.w, c.w, d.w), 4u * at + 3u);
    }
//!else
    for (var at = first + lane; at < end; at += LANES) {
        add_word(vec4<u32>(w[rows.x + at], w[rows.y + at], w[rows.z + at], w[rows.w + at]), at);
    }
//!endif
}
