// Which keys a token sees: the last `window` of its span, and the first `sinks`. Wants Params p (window, sinks).

struct Keys {
    // Sinks before the window, and the window: first key, and the key after the last.
    sinks: vec2<u32>,
    window: vec2<u32>,
    // Keys below it are sinks, also where they lie in the window.
    sink_end: u32,
}

// Of the keys first ..= last of t.
fn visible_keys(first: u32, last: u32, t: u32) -> Keys {
    let end = min(last, t - 1u) + 1u;
    let begin = min(first, end);
    let start = max(begin, end - min(end, p.window));
    let sink_end = begin + min(p.sinks, 0xffffffffu - begin);
    return Keys(vec2(begin, min(sink_end, start)), vec2(start, end), sink_end);
}

fn sees(keys: Keys, key: u32) -> bool {
    return (key >= keys.sinks.x && key < keys.sinks.y) || (key >= keys.window.x && key < keys.window.y);
}

// None, for a union over no tokens.
fn no_keys(t: u32) -> Keys {
    return Keys(vec2(t, 0u), vec2(t, 0u), 0u);
}

// Ranges that hold the keys of both; what a token alone sees is a part of them.
fn both_keys(a: Keys, b: Keys) -> Keys {
    var keys = a;
    if b.sinks.x < b.sinks.y {
        keys.sinks = vec2(min(a.sinks.x, b.sinks.x), max(a.sinks.y, b.sinks.y));
    }
    if b.window.x < b.window.y {
        keys.window = vec2(min(a.window.x, b.window.x), max(a.window.y, b.window.y));
    }
    keys.sink_end = max(a.sink_end, b.sink_end);
    return keys;
}

// Tiles are 32 keys from a multiple of 32 on. The first that a union sees; below all.window.y if there is one.
fn first_tile(all: Keys) -> u32 {
    return min(all.sinks.x, all.window.x) / 32u * 32u;
}

// The tile after this one, over what lies between sinks and window.
fn next_tile(all: Keys, tile: u32) -> u32 {
    let next = tile + 32u;
    let skip = next >= all.sinks.y && next < all.window.x;
    return select(next, all.window.x / 32u * 32u, skip);
}
