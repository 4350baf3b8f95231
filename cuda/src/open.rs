//! Opening cards by number.

use crate::backend::{Options, open_with_driver};
use crate::driver::Driver;
use crate::nvidia;
use std::sync::Arc;
use tritter_runtime::Opened;

/// The driver of the card of a number, or of the first that is suitable.
pub fn driver(ordinal: Option<usize>) -> Result<Arc<dyn Driver>, String> {
    nvidia::open(ordinal)
}

/// Opens the card of a number, or the first that is suitable. Never panics.
pub fn open(ordinal: Option<usize>, options: Options) -> Opened {
    let driver = match nvidia::open(ordinal) {
        Ok(driver) => driver,
        Err(why) => return Opened::Absent { why },
    };
    let id = format!("cuda:{}", driver.describe().ordinal);
    match open_with_driver(driver, &id, options) {
        Ok(device) => Opened::Ready(device),
        Err(error) => Opened::Absent { why: error.to_string() },
    }
}

/// Cards that the driver shows, suitable or not; 0 where there is no driver.
pub fn count() -> usize {
    nvidia::list().map_or(0, |cards| cards.len())
}

/// What there is of CUDA on this machine and how kernels are had, for people.
pub fn status() -> String {
    match nvidia::list() {
        Ok(cards) => cards.iter().map(|c| format!("{} {}: {}", c.id, c.name, c.kernels)).collect::<Vec<_>>().join("; "),
        Err(why) => why,
    }
}
