//! Prompt look-up: the last tokens are searched for earlier in the context, and what followed them there
//! is proposed as what follows now (Saxena, "Prompt Lookup Decoding", 2023). A draft costs nothing, and
//! texts that quote themselves (code, answers about a document) accept much of it.

/// Longest run of tokens that is searched for; shorter ones are tried after it.
const LONGEST: usize = 3;

/// `length` tokens that may follow `context`: those after the latest earlier place where its last tokens
/// stand, three of them if possible. Where they run into the end of the context it is a repetition, which
/// goes on. Empty where there is no such place.
pub fn draft(context: &[u32], length: usize) -> Vec<u32> {
    for n in (1..=LONGEST.min(context.len().saturating_sub(1))).rev() {
        let (earlier, last) = context.split_at(context.len() - n);
        // Something follows each of these places, since they lie before the last tokens themselves.
        let place = (0..earlier.len()).rev().find(|&at| context[at..].starts_with(last));
        if let Some(at) = place {
            return context[at + n..].iter().cycle().take(length).copied().collect();
        }
    }
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::draft;

    #[test]
    fn the_latest_longest_repetition_is_continued() {
        assert_eq!(draft(&[1, 2, 3, 9, 1, 2, 3], 2), [9, 1]);
        assert_eq!(draft(&[1, 2, 3, 9, 1, 2, 3], 6), [9, 1, 2, 3, 9, 1]);
        assert_eq!(draft(&[1, 2, 3, 8, 5, 2, 3, 7, 1, 2, 3], 1), [8], "three tokens go before two");
        assert_eq!(draft(&[2, 3, 8, 2, 3, 7, 2, 3], 1), [7], "of equally long ones the latest");
        assert_eq!(draft(&[4, 4, 4, 4], 5), [4; 5], "a repetition may overlap itself");
    }

    #[test]
    fn without_one_there_is_no_draft() {
        assert!(draft(&[1, 2, 3], 4).is_empty());
        assert!(draft(&[1], 4).is_empty() && draft(&[], 4).is_empty());
        assert!(draft(&[1, 1, 1], 0).is_empty());
    }
}
