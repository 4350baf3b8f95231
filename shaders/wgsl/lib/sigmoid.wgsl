// 1 / (1 + exp(-g)) without overflow: exp sees no positive number.

fn sigmoid(g: f32) -> f32 {
    let e = exp(-abs(g));
    return select(1.0, e, g < 0.0) / (1.0 + e);
}
