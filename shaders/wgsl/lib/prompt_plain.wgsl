// The two products of prompt_tile.wgsl in f32. Staged 32 elements of a head at a time; rows of 33 spread over the
// banks. The file that includes this declares, beside what prompt_tile.wgsl wants, key_at(form, place, t, c) and
// value_at(form, place, t, c): element c of the t-th token of a tile.

var<workgroup> staged_q: array<f32, 528>;
var<workgroup> staged_k: array<f32, 1056>;

// Scores, but for their factor, of this invocation's row with its two keys.
fn scores_of(work: Work, form: u32, place: Place, sink: bool) -> vec2<f32> {
    var s = vec2(0.0);
    for (var depth = 0u; depth < p.d; depth += DEPTH) {
        workgroupBarrier();
        let element = depth + work.lid % 32u;
        for (var line = work.lid / 32u; line < 48u; line += 8u) {
            var value = 0.0;
            if line < 16u {
                if element < p.d {
                    value = query_at(work, sink, line, element);
                }
                staged_q[line * 33u + work.lid % 32u] = value;
            } else {
                if element < p.d {
                    value = key_at(form, place, line - 16u, element);
                }
                staged_k[(line - 16u) * 33u + work.lid % 32u] = value;
            }
        }
        workgroupBarrier();
        let lane = work.lid % 16u;
        for (var i = 0u; i < DEPTH; i++) {
            let a = staged_q[work.lid / 16u * 33u + i];
            s += a * vec2(staged_k[lane * 33u + i], staged_k[(lane + 16u) * 33u + i]);
        }
    }
    return s;
}

// Adds the values of a tile by their weights.
fn add_values(work: Work, form: u32, place: Place) {
    let r = work.lid / 16u;
    let lane = work.lid % 16u;
    for (var depth = 0u; depth < DEPTHS; depth++) {
        workgroupBarrier();
        let element = depth * DEPTH + work.lid % 32u;
        for (var line = work.lid / 32u; line < 32u; line += 8u) {
            var value = 0.0;
            if element < p.d && wanted[line] == 1u {
                value = value_at(form, place, line, element);
            }
            staged_k[line * 33u + work.lid % 32u] = value;
        }
        workgroupBarrier();
        var two = vec2(0.0);
        for (var key = 0u; key < 32u; key++) {
            let at = key * 33u + lane;
            two += scores[r * SCORES + key] * vec2(staged_k[at], staged_k[at + 16u]);
        }
        sums[2u * depth] += two.x;
        sums[2u * depth + 1u] += two.y;
    }
}
