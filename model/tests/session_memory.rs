//! Memory that a session takes on the CPU against its plan, as the system counts it: growth of the peak of
//! resident pages. A test binary of its own, because the peak is the process's.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

use tritter_model::cache::CacheFormat;
use tritter_model::config::Family;
use tritter_model::presets::preset;
use tritter_model::programs::Layout;
use tritter_model::seeded::Synthetic;
use tritter_model::session::{Draw, SessionPlan};
use tritter_model::weights::{DenseFormat, Form, Formats, Model};
use tritter_runtime::DType;
use tritter_runtime::budget::overhead;

/// A field of `/proc/self/status` in bytes.
fn status(field: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

#[test]
fn a_session_with_an_int4_cache_takes_what_its_plan_says() {
    let config = preset("125M").unwrap().config(Family::Bitnet, None, None);
    let device = tritter_runtime::cpu::open();
    let table = DenseFormat::groups(DType::I8, 64);
    let formats = Formats { table, ..Formats::PLAIN }.on(&device);
    let format: CacheFormat = "int4".parse().unwrap();
    let layout = Layout::single(16_384, format);
    // The peak so far is forgotten where the system allows it; little was taken before.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
    let before = status("VmRSS:");

    let model = Model::with_formats(&config, Form::Run, formats, layout.capacity);
    let plan = SessionPlan::with(&model, layout).unwrap();
    let (planned, stated) = (plan.total(), overhead(device.caps()));
    model.load(&device, &Synthetic::new(&config, 1, DType::F32)).unwrap();
    let mut session = plan.open(&device).unwrap();
    session.set_draw(Draw::GREEDY).unwrap();
    // Long enough that pages have become codes.
    let ids: Vec<u32> = (0..600).map(|i| i * 7 % 65_000).collect();
    session.prefill(&ids).unwrap();
    for _ in 0..70 {
        session.step().unwrap();
    }
    session.token().unwrap().wait().unwrap();

    let peak = status("VmHWM:").saturating_sub(before);
    let most = planned + planned / 50 + stated;
    println!("{peak} bytes at the peak, {planned} planned, {stated} stated beside it");
    assert!(peak <= most, "{peak} bytes at the peak, {most} allowed: {planned} planned and {stated} beside it");
    // Most of a cache of zeros is not resident before it is written, but the weights are.
    assert!(peak >= model.bytes(), "{peak} bytes at the peak are less than {} of weights", model.bytes());
}
