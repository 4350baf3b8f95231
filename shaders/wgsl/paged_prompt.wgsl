// Attention of the tokens of a prompt over a paged cache; operands as in paged_attention.wgsl, one part. All rows are
// of one sequence, and their columns do not fall. See lib/prompt_tile.wgsl. SIDE wants HALF.

struct Params {
    m: u32,
    h: u32,
    d: u32,
    g: u32,
    scale: f32,
    window: u32,
    sinks: u32,
    page: u32,
    p: u32,
    s: u32,
    e: u32,
    parts: u32,
    prompt: u32,
}

var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> q: array<f32>;
@group(0) @binding(1) var<storage, read> qs: array<f32>;
//!if HALF
@group(0) @binding(2) var<storage, read> cache: array<u32>;
//!else
@group(0) @binding(2) var<storage, read> cache: array<f32>;
//!endif
@group(0) @binding(3) var<storage, read> rows: array<u32>;
@group(0) @binding(4) var<storage, read> table: array<u32>;
@group(0) @binding(5) var<storage, read_write> o: array<f32>;
@group(0) @binding(6) var<storage, read_write> lse: array<f32>;

//!include "prompt_tile"

const FORMS = 1u;

// Where a tile lies in the pool.
alias Place = u32;

fn forms(tile: u32, first: u32, last: u32) -> vec2<bool> {
    return vec2(true, false);
}

fn form_of(key: u32, boundary: u32) -> u32 {
    return 0u;
}

fn place_of(form: u32, sequence: u32, kv: u32, tile: u32) -> u32 {
    let page = min(table[sequence * p.e + tile / p.page], p.p - 1u);
    return ((page * p.page + tile % p.page) * 2u * p.g + kv) * p.d;
}

fn element(at: u32) -> f32 {
//!if HALF
    return unpack2x16float(cache[at / 2u])[at % 2u];
//!else
    return cache[at];
//!endif
}

//!if SIDE
fn key_code(place: u32, t: u32, c: u32) -> f32 {
    return element(place + t * 2u * p.g * p.d + c);
}

fn value_code(place: u32, t: u32, c: u32) -> f32 {
    return element(place + (2u * t + 1u) * p.g * p.d + c);
}

fn key_parameters_of(place: u32, c: u32) -> vec2<f32> {
    return vec2(1.0, 0.0);
}

fn value_parameters_of(place: u32, t: u32, c: u32) -> vec2<f32> {
    return vec2(1.0, 0.0);
}

fn fresh_steps(element: u32) -> bool {
    return element == 0u;
}

//!else
fn key_at(form: u32, place: u32, t: u32, c: u32) -> f32 {
    return element(place + t * 2u * p.g * p.d + c);
}

fn value_at(form: u32, place: u32, t: u32, c: u32) -> f32 {
    return element(place + (2u * t + 1u) * p.g * p.d + c);
}

//!endif
