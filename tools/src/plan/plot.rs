//! Memory against context as an SVG picture: a line for each type of cache, and the budget.
//!
//! Written as text; a drawing of a dozen lines needs no library.

use std::fmt::Write;

/// A line of the picture: a value for each context of the plot.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    pub(crate) name: String,
    /// Bytes.
    pub(crate) bytes: Vec<u64>,
}

/// What the picture shows.
#[derive(Clone, Debug)]
pub(crate) struct Plot {
    pub(crate) title: String,
    /// Rising, in tokens; drawn at equal distances for equal factors.
    pub(crate) contexts: Vec<usize>,
    pub(crate) lines: Vec<Line>,
    /// Bytes of the budget, if there is one.
    pub(crate) budget: Option<u64>,
}

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 440.0;
/// Left, top, right and bottom of the drawing's frame.
const FRAME: [f64; 4] = [64.0, 44.0, 640.0, 390.0];
/// Of good contrast on white, and told apart by people who see few colours (Okabe and Ito 2008).
const COLOURS: [&str; 6] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00"];

impl Plot {
    /// The picture.
    pub(crate) fn svg(&self) -> String {
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
             font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n"
        );
        text(&mut svg, [FRAME[0], 24.0], "start", "#000000", &self.title);
        let top = self.top();
        self.grid(&mut svg, top);
        let labels = self.labels(top);
        for (i, (line, label)) in self.lines.iter().zip(labels).enumerate() {
            self.line(&mut svg, line, (COLOURS[i % COLOURS.len()], label), top);
        }
        if let Some(budget) = self.budget {
            let y = height(budget as f64, top);
            let [left, _, right, _] = FRAME;
            let dash = "stroke=\"#000000\" stroke-width=\"1.5\" stroke-dasharray=\"6 4\"";
            let _ = writeln!(svg, "<line x1=\"{left}\" y1=\"{y:.1}\" x2=\"{right}\" y2=\"{y:.1}\" {dash}/>");
            text(&mut svg, [left + 6.0, y - 5.0], "start", "#000000", &format!("budget {:.1} GB", gb(budget)));
        }
        svg + "</svg>\n"
    }

    /// The end of the vertical axis, in bytes: a round number above all that is drawn.
    fn top(&self) -> f64 {
        let most = self.lines.iter().flat_map(|line| &line.bytes).chain(&self.budget).max();
        let most = (most.copied().unwrap_or(1) as f64 * 1.05).max(1.0);
        let unit = 10f64.powf(most.log10().floor());
        let steps = [1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0];
        steps.iter().map(|step| step * unit).find(|&end| end >= most).unwrap_or(10.0 * unit)
    }

    fn grid(&self, svg: &mut String, top: f64) {
        let [left, above, right, below] = FRAME;
        for i in 0..=5 {
            let value = top * f64::from(i) / 5.0;
            let y = height(value, top);
            let _ =
                writeln!(svg, "<line x1=\"{left}\" y1=\"{y:.1}\" x2=\"{right}\" y2=\"{y:.1}\" stroke=\"#dddddd\"/>");
            text(svg, [left - 8.0, y + 4.0], "end", "#444444", &format!("{} GB", short(value / 1e9)));
        }
        for &context in &self.contexts {
            let x = self.across(context);
            let _ = writeln!(
                svg,
                "<line x1=\"{x:.1}\" y1=\"{below}\" x2=\"{x:.1}\" y2=\"{:.1}\" stroke=\"#444444\"/>",
                below + 5.0
            );
            text(svg, [x, below + 19.0], "middle", "#444444", &tokens(context));
        }
        text(svg, [left.midpoint(right), below + 38.0], "middle", "#444444", "tokens of context");
        let _ = writeln!(
            svg,
            "<path d=\"M{left} {above}V{below}H{right}\" fill=\"none\" stroke=\"#444444\" stroke-width=\"1\"/>"
        );
    }

    /// Where the names of the lines stand: as near to their ends as can be with no two on each other.
    fn labels(&self, top: f64) -> Vec<f64> {
        const APART: f64 = 14.0;
        let end = |line: &Line| height(line.bytes.last().copied().unwrap_or(0) as f64, top);
        let mut ends: Vec<(usize, f64)> = self.lines.iter().map(end).enumerate().collect();
        // From below, and of equal ones the first stands highest.
        ends.sort_by(|a, b| b.1.total_cmp(&a.1).then(b.0.cmp(&a.0)));
        // Labels that meet form a block, which stands where its labels would on average.
        let mut blocks: Vec<(f64, usize)> = Vec::new();
        for (i, (_, y)) in ends.iter().enumerate() {
            let (mut sum, mut count) = (y + i as f64 * APART, 1);
            while let Some((below, labels)) =
                blocks.pop_if(|(below, labels)| *below / (*labels as f64) < sum / f64::from(count))
            {
                sum += below;
                count += labels as u32;
            }
            blocks.push((sum, count as usize));
        }
        let places = blocks.into_iter().flat_map(|(sum, count)| std::iter::repeat_n(sum / count as f64, count));
        let mut labels = vec![0.0; ends.len()];
        for (i, (place, (line, _))) in places.zip(&ends).enumerate() {
            labels[*line] = (place - i as f64 * APART).min(FRAME[3] - i as f64 * APART);
        }
        labels
    }

    fn line(&self, svg: &mut String, line: &Line, (colour, label): (&str, f64), top: f64) {
        let points: Vec<[f64; 2]> =
            self.contexts.iter().zip(&line.bytes).map(|(&c, &b)| [self.across(c), height(b as f64, top)]).collect();
        let path: Vec<String> = points.iter().map(|[x, y]| format!("{x:.1},{y:.1}")).collect();
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
            path.join(" ")
        );
        if let [[x, y]] = points.as_slice() {
            // A line of one point is none.
            let _ = writeln!(svg, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{colour}\"/>");
        }
        if let (Some([x, _]), Some(&last)) = (points.last(), line.bytes.last()) {
            let said = format!("{} {} GB", line.name, short(gb(last)));
            text(svg, [x + 8.0, label + 4.0], "start", colour, &said);
        }
    }

    /// Where a context stands, on a scale of its logarithm.
    fn across(&self, context: usize) -> f64 {
        let log = |tokens: usize| (tokens.max(1) as f64).log2();
        let (first, last) = (self.contexts.first().copied().unwrap_or(1), self.contexts.last().copied().unwrap_or(1));
        let share = if last > first { (log(context) - log(first)) / (log(last) - log(first)) } else { 1.0 };
        FRAME[0] + share * (FRAME[2] - FRAME[0])
    }
}

/// Where an amount stands.
fn height(bytes: f64, top: f64) -> f64 {
    FRAME[3] - bytes / top * (FRAME[3] - FRAME[1])
}

fn gb(bytes: u64) -> f64 {
    bytes as f64 / 1e9
}

/// Three digits at most, as many as are needed.
fn short(value: f64) -> String {
    let digits = if value >= 100.0 { 0 } else { 2 };
    let text = format!("{value:.digits$}");
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_string(),
        false => text,
    }
}

/// `128K` where it is one, else the number.
pub(crate) fn tokens(count: usize) -> String {
    match count {
        0 => "0".into(),
        n if n.is_multiple_of(1 << 20) => format!("{}M", n >> 20),
        n if n.is_multiple_of(1 << 10) => format!("{}K", n >> 10),
        n => n.to_string(),
    }
}

fn text(svg: &mut String, [x, y]: [f64; 2], anchor: &str, colour: &str, words: &str) {
    let words = words.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" fill=\"{colour}\">{words}</text>");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plot() -> Plot {
        Plot {
            title: "a <model> & its cache".into(),
            contexts: vec![1024, 4096, 16_384],
            lines: vec![
                Line { name: "f16".into(), bytes: vec![2_000_000_000, 5_000_000_000, 17_000_000_000] },
                Line { name: "int4".into(), bytes: vec![2_000_000_000, 3_000_000_000, 6_000_000_000] },
            ],
            budget: Some(12_600_000_000),
        }
    }

    #[test]
    fn the_picture_has_a_line_for_each_cache_and_the_budget_and_escapes_names() {
        let svg = plot().svg();
        assert_eq!(svg.matches("<polyline").count(), 2);
        assert!(svg.contains("budget 12.6 GB") && svg.contains("int4 6 GB") && svg.contains(">16K<"), "{svg}");
        assert!(svg.contains("a &lt;model&gt; &amp; its cache"), "{svg}");
        assert_eq!(svg.matches("<text").count(), svg.matches("</text>").count());
    }

    #[test]
    fn everything_lies_within_the_frame() {
        let plot = plot();
        let top = plot.top();
        assert!((17.85e9..40e9).contains(&top), "{top}");
        for bytes in plot.lines.iter().flat_map(|line| &line.bytes).chain(&plot.budget) {
            assert!((FRAME[1]..=FRAME[3]).contains(&height(*bytes as f64, top)));
        }
        let xs: Vec<f64> = plot.contexts.iter().map(|&context| plot.across(context)).collect();
        assert_eq!(xs, [FRAME[0], FRAME[0].midpoint(FRAME[2]), FRAME[2]]);
    }

    #[test]
    fn names_of_lines_that_meet_stand_apart() {
        let line = |name: &str, end| Line { name: name.into(), bytes: vec![1, end] };
        let lines = vec![line("a", 1000), line("b", 1001), line("c", 999), line("d", 5000)];
        let labels = Plot { lines, ..plot() }.labels(10_000.0);
        let mut sorted = labels.clone();
        sorted.sort_by(f64::total_cmp);
        assert!(sorted.windows(2).all(|pair| pair[1] - pair[0] >= 13.9), "{labels:?}");
        assert!(labels[3] < labels[1] && labels[1] < labels[0] && labels[0] < labels[2], "{labels:?}");
        let end = height(1000.0, 10_000.0);
        assert!((labels[0] - end).abs() < 0.1, "the middle of three stands where its line ends: {labels:?} by {end}");
    }

    #[test]
    fn names_of_equal_lines_are_in_order_and_none_leaves_the_picture() {
        for bytes in [1u64, 9999] {
            let lines: Vec<Line> =
                ["a", "b", "c", "d", "e"].map(|name| Line { name: name.into(), bytes: vec![bytes] }).into();
            let labels = Plot { lines, contexts: vec![9], ..plot() }.labels(10_000.0);
            assert!(labels.is_sorted(), "{labels:?}");
            assert!(labels.iter().all(|&y| (10.0..=FRAME[3]).contains(&y)), "{labels:?}");
        }
    }

    #[test]
    fn a_plot_of_one_context_and_of_nothing_are_pictures_too() {
        let one = Plot { contexts: vec![7], lines: Vec::new(), budget: None, title: String::new() };
        assert!(one.svg().contains(">7<") && !one.svg().contains("NaN"));
        assert!(!Plot { contexts: Vec::new(), ..one }.svg().contains("NaN"));
        let line = Line { name: "f16".into(), bytes: vec![5] };
        let dot = Plot { contexts: vec![7], lines: vec![line], budget: None, title: String::new() };
        assert!(dot.svg().contains("<circle"), "one context is a dot: a line of one point cannot be seen");
    }
}
