//! The text that `tritter demo` learns: stories written for it, embedded in the executable.

const FILES: [&str; 4] = [
    include_str!("../assets/demo/01.txt"),
    include_str!("../assets/demo/02.txt"),
    include_str!("../assets/demo/03.txt"),
    include_str!("../assets/demo/04.txt"),
];

/// The stories, each with its title line, in order.
pub fn stories() -> impl Iterator<Item = &'static str> {
    FILES.iter().flat_map(|text| text.split("\n\n\n")).map(str::trim).filter(|story| !story.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_story_has_a_title_and_a_body() {
        assert!(stories().count() > 100);
        assert!(stories().all(|s| s.starts_with("# ") && s.lines().count() > 2));
    }
}
