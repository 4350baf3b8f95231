// Attention of the tokens of a prompt over a paged cache of codes; operands as in quantized_attention.wgsl, one part.
// All rows are of one sequence, and their columns do not fall. A key between two rows' boundaries is read in both
// forms: as codes, and from the ring. See lib/prompt_tile.wgsl.

struct Params {
    m: u32,
    h: u32,
    d: u32,
    g: u32,
    scale: f32,
    window: u32,
    sinks: u32,
    page: u32,
    ring: u32,
    p: u32,
    s: u32,
    e: u32,
    bits: u32,
    exact: u32,
    parts: u32,
    prompt: u32,
}

var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> q: array<f32>;
@group(0) @binding(1) var<storage, read> qs: array<f32>;
@group(0) @binding(2) var<storage, read> codes: array<u32>;
@group(0) @binding(3) var<storage, read> ring: array<f32>;
@group(0) @binding(4) var<storage, read> rows: array<u32>;
@group(0) @binding(5) var<storage, read> table: array<u32>;
@group(0) @binding(6) var<storage, read_write> o: array<f32>;
@group(0) @binding(7) var<storage, read_write> lse: array<f32>;

//!include "prompt_tile"
//!include "codes_read"

const FORMS = 2u;

// Boundaries are multiples of a page.
fn forms(tile: u32, first: u32, last: u32) -> vec2<bool> {
    return vec2((tile < last), (tile >= first));
}

fn form_of(key: u32, boundary: u32) -> u32 {
    return select(0u, 1u, key >= boundary);
}

struct Place {
    // The block of codes, or element of the ring.
    at: u32,
    // Its token in the page.
    token: u32,
}

fn place_of(form: u32, sequence: u32, kv: u32, tile: u32) -> Place {
    if form == 1u {
        return Place(((sequence * p.ring + tile % p.ring) * 2u * p.g + kv) * p.d, 0u);
    }
    let page = min(table[sequence * p.e + tile / p.page], p.p - 1u);
    return Place((page * p.g + kv) * block_words(), tile % p.page);
}

fn code(row: u32, c: u32) -> f32 {
    let bit = c * BITS;
    return f32(extractBits(word(row + bit / 32u), bit % 32u, BITS));
}

fn key_code(place: Place, t: u32, c: u32) -> f32 {
    return code(place.at + (place.token + t) * row_words(), c);
}

fn value_code(place: Place, t: u32, c: u32) -> f32 {
    return code(place.at + value_codes() + (place.token + t) * row_words(), c);
}

fn key_parameters_of(place: Place, c: u32) -> vec2<f32> {
    return parameters(place.at + key_parameters(), c);
}

fn value_parameters_of(place: Place, t: u32, c: u32) -> vec2<f32> {
    return parameters(place.at + value_parameters(), (place.token + t) * value_groups() + c / p.page);
}

// A group of channels is as long as a page, and pages are multiples of 32.
fn fresh_steps(element: u32) -> bool {
    return element % p.page == 0u;
}

fn key_at(form: u32, place: Place, t: u32, c: u32) -> f32 {
    if form == 1u {
        return ring[place.at + t * 2u * p.g * p.d + c];
    }
    let key = key_parameters_of(place, c);
    return key_code(place, t, c) * key.x + key.y;
}

fn value_at(form: u32, place: Place, t: u32, c: u32) -> f32 {
    if form == 1u {
        return ring[place.at + (2u * t + 1u) * p.g * p.d + c];
    }
    let value = value_parameters_of(place, t, c);
    return value_code(place, t, c) * value.x + value.y;
}
