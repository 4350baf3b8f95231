//! Stop strings in a text that arrives in pieces: nothing of one is ever let through, wherever the
//! borders between tokens lie.

/// Watches a text for the first of several strings.
#[derive(Clone, Debug, Default)]
pub struct StopStrings {
    stops: Vec<String>,
    /// The end of the text so far, which may be the beginning of a stop string.
    held: String,
}

/// What a piece of text led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passed {
    /// Text that is certain to stand before any stop string.
    pub text: String,
    /// The stop string that followed it.
    pub stop: Option<String>,
}

impl StopStrings {
    /// Watches for these; empty ones never match.
    pub fn new(stops: &[String]) -> StopStrings {
        StopStrings { stops: stops.iter().filter(|s| !s.is_empty()).cloned().collect(), held: String::new() }
    }

    /// Takes the next piece. After a stop string nothing more is to be pushed.
    pub fn push(&mut self, piece: &str) -> Passed {
        self.held.push_str(piece);
        let found = self.stops.iter().filter_map(|stop| Some((self.held.find(stop.as_str())?, stop)));
        // The earliest; of two that begin together the longer one.
        if let Some((at, stop)) = found.min_by_key(|(at, stop)| (*at, usize::MAX - stop.len())) {
            let (stop, mut text) = (stop.clone(), std::mem::take(&mut self.held));
            text.truncate(at);
            return Passed { text, stop: Some(stop) };
        }
        let begins = |at: &usize| self.stops.iter().any(|stop| stop.starts_with(&self.held[*at..]));
        let open = self.held.char_indices().map(|(at, _)| at).find(begins).unwrap_or(self.held.len());
        let held = self.held.split_off(open);
        Passed { text: std::mem::replace(&mut self.held, held), stop: None }
    }

    /// What was held back, at the end of the text.
    pub fn finish(self) -> String {
        self.held
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host_sampling::Random;

    fn run(stops: &[&str], pieces: &[&str]) -> (String, Option<String>) {
        let stops: Vec<String> = stops.iter().map(|s| s.to_string()).collect();
        let (mut watch, mut text) = (StopStrings::new(&stops), String::new());
        for piece in pieces {
            let passed = watch.push(piece);
            text += &passed.text;
            if passed.stop.is_some() {
                return (text, passed.stop);
            }
        }
        (text + &watch.finish(), None)
    }

    #[test]
    fn a_stop_string_is_found_across_pieces_and_nothing_of_it_passes() {
        let stopped = |text: &str, stop: &str| (text.to_string(), Some(stop.to_string()));
        assert_eq!(run(&["END"], &["a E", "N", "D b"]), stopped("a ", "END"));
        assert_eq!(run(&["END"], &["a E", "NE", "ND"]), stopped("a EN", "END"));
        assert_eq!(run(&["aab"], &["aa", "aab"]), stopped("aa", "aab"));
        assert_eq!(run(&["é川"], &["xé", "é", "川"]), stopped("xé", "é川"));
        assert_eq!(run(&["later", "now"], &["no", "w later"]), stopped("", "now"));
        assert_eq!(run(&["ab", "abc"], &["abc"]), stopped("", "abc"));
    }

    #[test]
    fn text_without_one_passes_whole() {
        assert_eq!(run(&["END"], &["a E", "N"]), ("a EN".to_string(), None));
        assert_eq!(run(&["", "zz"], &["plain", "z"]), ("plainz".to_string(), None));
        assert_eq!(run(&[], &["plain"]), ("plain".to_string(), None));
    }

    #[test]
    fn pieces_make_no_difference() {
        let mut random = Random::new(5);
        for round in 0..2000 {
            let letter = |random: &mut Random| ["a", "b", "é"][(random.next_u64() % 3) as usize];
            let text: Vec<&str> = (0..12).map(|_| letter(&mut random)).collect();
            let stop: String = (0..1 + round % 4).map(|_| letter(&mut random)).collect();
            let whole = text.concat();
            let expected = whole.find(&stop).map_or(whole.as_str(), |at| &whole[..at]);
            let (found, _) = run(&[&stop], &text);
            assert_eq!(found, expected, "{text:?} {stop}");
            assert!(!found.contains(&stop));
        }
    }
}
