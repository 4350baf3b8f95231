// The two products of prompt_tile.wgsl on cooperative matrices, for keys and values that are code * step + zero with
// codes that are exact in f16 (f16 itself, with step 1 and zero 0, or integers of up to 8 bits).
//
// Queries times steps, and weights times steps, go in two f16 parts: high, and low for what high leaves, 22 bits
// together, each multiplied by itself. A power of two brings the largest of a row to 2^14..2^15 before that, so nothing
// overflows, and what low loses to subnormals is 2^-39 of the largest. Zeros are added apart, in f32.
//
// The file that includes this declares, beside what prompt_tile.wgsl wants, fresh_steps(element): whether steps of
// the values change at this element of a head; and for element c of the t-th token of a tile
// - key_code(place, t, c), value_code(place, t, c);
// - key_parameters_of(place, c), value_parameters_of(place, t, c): step and zero.
//!include "matrix"

// Matrices side by side in a product of 16 x 32.
const ACROSS = 32u / SIDE;
const FRAGMENTS = 16u / SIDE * ACROSS;
// Elements of a row of operands, and where low parts begin.
const LINE = 40u;
const LOW = 640u;

// Of queries, then of weights: [16][LINE] high, [16][LINE] low.
var<workgroup> left_parts: array<f16, 1280>;
// Of keys, then of values: [32][LINE].
var<workgroup> right_tile: array<f16, 1280>;
var<workgroup> products: array<f32, 576>;
var<workgroup> team: array<vec2<f32>, 256>;
// By row of queries: the power of two, and what zeros add.
var<workgroup> factors: array<f32, 16>;
var<workgroup> bases: array<f32, 16>;
// By key: step and zero of its values.
var<workgroup> value_steps: array<vec2<f32>, 32>;

// The power of two that brings a magnitude to 2^14..2^15, and its inverse, which is as exact.
fn factor_for(most: f32) -> f32 {
    let exponent = (bitcast<u32>(most) >> 23u) & 0xffu;
    return bitcast<f32>(min(268u - exponent, 253u) << 23u);
}

fn inverse_of(factor: f32) -> f32 {
    return bitcast<f32>((254u << 23u) - bitcast<u32>(factor));
}

// Bits, because compilers drop a conversion to f16 and back.
fn store_parts(at: u32, v: f32) {
    let high = bitcast<f32>((bitcast<u32>(v) + 0x1000u) & 0xffffe000u);
    left_parts[at] = f16(high);
    left_parts[LOW + at] = f16(v - high);
}

fn matrix_scores(work: Work, place: Place, sink: bool) -> vec2<f32> {
    let r = work.lid / 16u;
    let lane = work.lid % 16u;
    var most = 0.0;
    var base = 0.0;
    for (var c = lane; c < p.d; c += 16u) {
        let query = query_at(work, sink, r, c);
        let parameters = key_parameters_of(place, c);
        most = max(most, abs(query * parameters.x));
        base += query * parameters.y;
    }
    team[work.lid] = vec2(most, base);
    workgroupBarrier();
    if work.lid < 16u {
        var all = team[16u * work.lid];
        for (var i = 1u; i < 16u; i++) {
            let next = team[16u * work.lid + i];
            all = vec2(max(all.x, next.x), all.y + next.y);
        }
        factors[work.lid] = factor_for(all.x);
        bases[work.lid] = all.y;
    }
    scores[r * SCORES + lane] = 0.0;
    scores[r * SCORES + lane + 16u] = 0.0;
    for (var depth = 0u; depth < p.d; depth += DEPTH) {
        workgroupBarrier();
        let column = work.lid % 32u;
        let element = depth + column;
        var step = 0.0;
        if element < p.d {
            step = key_parameters_of(place, element).x;
        }
        for (var line = work.lid / 32u; line < 48u; line += 8u) {
            var value = 0.0;
            if line < 16u {
                if element < p.d {
                    value = query_at(work, sink, line, element) * step * factors[line];
                }
                store_parts(line * LINE + column, value);
            } else {
                if element < p.d {
                    value = key_code(place, line - 16u, element);
                }
                right_tile[(line - 16u) * LINE + column] = f16(value);
            }
        }
        workgroupBarrier();
        for (var f = work.subgroup; f < FRAGMENTS; f += work.subgroups) {
            let row = f / ACROSS * SIDE;
            let key = f % ACROSS * SIDE;
            var sum = coopLoadT<Sums>(&scores[row * SCORES + key], SCORES);
            for (var k = 0u; k < DEPTH; k += SIDE) {
                let right = coopLoad<Right>(&right_tile[key * LINE + k], LINE);
                sum = coopMultiplyAdd(coopLoadT<Left>(&left_parts[row * LINE + k], LINE), right, sum);
                sum = coopMultiplyAdd(coopLoadT<Left>(&left_parts[LOW + row * LINE + k], LINE), right, sum);
            }
            coopStoreT(sum, &scores[row * SCORES + key], SCORES);
        }
    }
    workgroupBarrier();
    let at = r * SCORES + lane;
    return vec2(scores[at], scores[at + 16u]) * inverse_of(factors[r]) + bases[r];
}

// Weights times steps of the values from an element on, as parts; gives what they are to be multiplied with, and
// what zeros add to this invocation's row.
fn part_weights(work: Work, place: Place, element: u32) -> vec2<f32> {
    let r = work.lid / 16u;
    if work.lid < 32u {
        value_steps[work.lid] = vec2(0.0);
        if wanted[work.lid] == 1u {
            value_steps[work.lid] = value_parameters_of(place, work.lid, element);
        }
    }
    workgroupBarrier();
    var most = 0.0;
    var base = 0.0;
    for (var key = 0u; key < 32u; key++) {
        most = max(most, abs(value_steps[key].x));
        base += scores[r * SCORES + key] * value_steps[key].y;
    }
    // Weights are at most 1.
    let factor = factor_for(most);
    for (var key = work.lid % 16u; key < 32u; key += 16u) {
        store_parts(r * LINE + key, scores[r * SCORES + key] * value_steps[key].x * factor);
    }
    return vec2(inverse_of(factor), base);
}

fn matrix_values(work: Work, place: Place) {
    let r = work.lid / 16u;
    let lane = work.lid % 16u;
    var scale = vec2(0.0);
    for (var depth = 0u; depth < DEPTHS; depth++) {
        workgroupBarrier();
        let column = work.lid % 32u;
        let element = depth * DEPTH + column;
        for (var line = work.lid / 32u; line < 32u; line += 8u) {
            var value = 0.0;
            if element < p.d && wanted[line] == 1u {
                value = value_code(place, line, element);
            }
            right_tile[line * LINE + column] = f16(value);
        }
        if fresh_steps(depth * DEPTH) {
            scale = part_weights(work, place, depth * DEPTH);
        }
        workgroupBarrier();
        for (var f = work.subgroup; f < FRAGMENTS; f += work.subgroups) {
            let row = f / ACROSS * SIDE;
            let to = f % ACROSS * SIDE;
            var sum = coopLoadT<Sums>(&zeros[0], SIDE);
            for (var k = 0u; k < 32u; k += SIDE) {
                let right = coopLoadT<Right>(&right_tile[k * LINE + to], LINE);
                sum = coopMultiplyAdd(coopLoadT<Left>(&left_parts[row * LINE + k], LINE), right, sum);
                sum = coopMultiplyAdd(coopLoadT<Left>(&left_parts[LOW + row * LINE + k], LINE), right, sum);
            }
            coopStoreT(sum, &products[row * SCORES + to], SCORES);
        }
        workgroupBarrier();
        let at = r * SCORES + lane;
        sums[2u * depth] += products[at] * scale.x + scale.y;
        sums[2u * depth + 1u] += products[at + 16u] * scale.x + scale.y;
    }
}
