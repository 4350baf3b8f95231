//! What a run takes, before anything is allocated: parts, budgets, what is given up under pressure, cards,
//! and a picture.

pub(crate) mod budget;
pub(crate) mod cards;
pub(crate) mod ladder;
pub(crate) mod matrix;
pub(crate) mod nearest;
pub(crate) mod parts;
pub(crate) mod plot;
pub(crate) mod report;
pub(crate) mod session;
pub(crate) mod streaming;
pub(crate) mod training;
