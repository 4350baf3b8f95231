//! Renders chat templates, which are Jinja (Armin Ronacher's language, here his `minijinja`), in the
//! environment that transformers gives them: blocks trimmed, loop controls, Python's string and dictionary
//! methods, `raise_exception`, `strftime_now`, `tojson` without HTML escapes, and `generation` blocks,
//! which only mark text there. What a template does not find is undefined and prints as nothing, as in
//! Jinja.
//!
//! Templates come with checkpoints, so what one may do is bounded: steps, nesting and the length of what
//! it writes. Nothing of the file system or the network can be reached from one.

use minijinja::value::Kwargs;
use minijinja::{Environment, Error, ErrorKind, State, Value, context};
use std::time::{SystemTime, UNIX_EPOCH};

/// Instructions that a template may take.
const FUEL: u64 = 5_000_000;
/// Longest rendered conversation in bytes.
const MAX_OUTPUT: usize = 1 << 24;

/// A message of one speaker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// What is said.
    pub content: String,
}

impl Message {
    /// A message.
    pub fn new(role: &str, content: &str) -> Message {
        Message { role: role.into(), content: content.into() }
    }
}

/// Renders a conversation; `prompt` asks for the opening of the next answer, `names` are the special tokens
/// that templates may write (`bos_token`, `eos_token`, …) with their spelling. The error says what in the
/// template is not understood, or what it objects to.
pub fn render(template: &str, messages: &[Message], prompt: bool, names: &[(&str, String)]) -> Result<String, String> {
    let template = without_generation(template);
    let list: Vec<Value> =
        messages.iter().map(|m| context! { role => m.role.as_str(), content => m.content.as_str() }).collect();
    let mut values: Vec<(&str, Value)> = names.iter().map(|(name, token)| (*name, token.as_str().into())).collect();
    values.extend([
        ("messages", Value::from(list)),
        ("add_generation_prompt", prompt.into()),
        ("tools", ().into()),
        ("documents", ().into()),
    ]);
    let environment = environment().map_err(|error| say(&error))?;
    let template = environment.template_from_str(&template).map_err(|error| say(&error))?;
    let mut out = Bounded::default();
    let written = template.render_captured_to(Value::from_pairs(values), &mut out).map(|_| ());
    if out.full {
        return Err(format!("the result is longer than {MAX_OUTPUT} bytes"));
    }
    written.map_err(|error| say(&error))?;
    String::from_utf8(out.bytes).map_err(|error| error.to_string())
}

fn environment() -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    environment.set_syntax(minijinja::syntax::SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_fuel(Some(FUEL));
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", strftime_now);
    environment.add_filter("tojson", tojson);
    Ok(environment)
}

/// The message of an error and of its causes, with the line.
fn say(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

/// Blocks `generation` … `endgeneration` mark what a model said, for training; here they are plain blocks.
fn without_generation(template: &str) -> String {
    let mut out = String::with_capacity(template.len());
    let mut rest = template;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at + 2);
        out.push_str(before);
        let sign = tag.strip_prefix(['-', '+']).map_or(0, |_| 1);
        let (sign, inside) = tag.split_at(sign);
        let end = inside.find("%}").unwrap_or(inside.len());
        let (inside, after) = inside.split_at(end);
        let plain = match inside.trim_end_matches(['-', '+']).trim() {
            "generation" => inside.replacen("generation", "if true", 1),
            "endgeneration" => inside.replacen("endgeneration", "endif", 1),
            _ => inside.to_owned(),
        };
        out.push_str(sign);
        out.push_str(&plain);
        rest = after;
    }
    out.push_str(rest);
    out
}

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

/// JSON as Python's `json.dumps` writes it: minijinja's without the escapes that HTML needs.
fn tojson(value: &Value, options: Kwargs) -> Result<Value, Error> {
    let indent: Option<Value> = options.get("indent")?;
    // Python's `ensure_ascii` is off in transformers, whatever a template asks for.
    let _: Option<Value> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    let json = minijinja::filters::tojson(
        value,
        indent.filter(|v| !v.is_none()),
        Kwargs::from_iter([] as [(&str, Value); 0]),
    )?;
    let json = json.as_str().unwrap_or_default();
    let mut out = String::with_capacity(json.len());
    let mut rest = json;
    while let Some(at) = rest.find('\\') {
        let (before, escape) = rest.split_at(at);
        out.push_str(before);
        let plain = [("\\u003c", '<'), ("\\u003e", '>'), ("\\u0026", '&'), ("\\u0027", '\'')];
        if let Some((escaped, letter)) = plain.into_iter().find(|(escaped, _)| escape.starts_with(escaped)) {
            out.push(letter);
            rest = &escape[escaped.len()..];
        } else {
            // A backslash and what it escapes, which may be another backslash.
            let end = escape.char_indices().nth(2).map_or(escape.len(), |(end, _)| end);
            out.push_str(&escape[..end]);
            rest = &escape[end..];
        }
    }
    out.push_str(rest);
    Ok(Value::from(out))
}

/// Date and time by a format of C's `strftime`, in UTC.
fn strftime_now(_: &State, format: String) -> Result<Value, Error> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map(|since| since.as_secs()).unwrap_or(0);
    let text = strftime(now, &format);
    text.map(Value::from).map_err(|problem| Error::new(ErrorKind::InvalidOperation, problem))
}

fn strftime(seconds: u64, format: &str) -> Result<String, String> {
    const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = date(days);
    let (weekday, name) = (DAYS[(days % 7) as usize], MONTHS[month - 1]);
    let mut out = String::new();
    let mut letters = format.chars();
    while let Some(letter) = letters.next() {
        if letter != '%' {
            out.push(letter);
            continue;
        }
        out += &match letters.next() {
            Some('Y') => format!("{year}"),
            Some('y') => format!("{:02}", year % 100),
            Some('m') => format!("{month:02}"),
            Some('d') => format!("{day:02}"),
            Some('e') => format!("{day:2}"),
            Some('B') => name.into(),
            Some('b') => name[..3].into(),
            Some('A') => weekday.into(),
            Some('a') => weekday[..3].into(),
            Some('H') => format!("{:02}", second / 3600),
            Some('M') => format!("{:02}", second / 60 % 60),
            Some('S') => format!("{:02}", second % 60),
            Some('F') => format!("{year}-{month:02}-{day:02}"),
            Some('%') => "%".into(),
            other => {
                return Err(format!("strftime_now does not know `%{}`", other.map_or(String::new(), String::from)));
            }
        };
    }
    Ok(out)
}

/// Year, month and day of a day since 1970-01-01 in the Gregorian calendar.
fn date(mut days: u64) -> (u64, usize, u64) {
    let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    // 400 years have 146,097 days.
    let mut year = 1970 + days / 146_097 * 400;
    days %= 146_097;
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let lengths = [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 0;
    while month < 11 && days >= lengths[month] {
        days -= lengths[month];
        month += 1;
    }
    (year, month + 1, days + 1)
}

/// What a template writes, up to the longest that is allowed.
#[derive(Default)]
struct Bounded {
    bytes: Vec<u8>,
    full: bool,
}

impl std::io::Write for Bounded {
    fn write(&mut self, part: &[u8]) -> std::io::Result<usize> {
        if self.bytes.len() + part.len() > MAX_OUTPUT {
            self.full = true;
            return Err(std::io::Error::other("too long"));
        }
        self.bytes.extend_from_slice(part);
        Ok(part.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn said(template: &str) -> Result<String, String> {
        let messages = [Message::new("user", " hi "), Message::new("assistant", "yes")];
        render(template, &messages, true, &[("bos_token", "<s>".to_owned())])
    }

    #[track_caller]
    fn gives(template: &str, expected: &str) {
        assert_eq!(said(template).unwrap(), expected, "{template}");
    }

    #[test]
    fn loops_conditions_and_filters_work() {
        gives(
            "{% for m in messages %}<{{ m['role'] + '>' + m.content | trim }}{% endfor %}\
             {% if add_generation_prompt %}\n!{% else %}?{% endif %}",
            "<user>hi<assistant>yes!",
        );
        gives(
            "{%- for m in messages -%}\n {% if m.role == 'user' %}U\
             {% elif not (m.role != 'assistant') and true %}A{% endif %}\n{% endfor %}.",
            "UA.",
        );
        gives("{% set x = 1 %}{{ bos_token }}{{ x + messages | length }}", "<s>3");
        gives("{% for m in messages[1:] %}{{ loop.index0 }}{{ m.content }}{% endfor %}", "0yes");
        gives("{% for m in messages %}{% if loop.last %}{% break %}{% endif %}{{ m.role }}{% endfor %}", "user");
        gives("{% set n = namespace(x=0) %}{% for m in messages %}{% set n.x = n.x + 1 %}{% endfor %}{{ n.x }}", "2");
        gives("{% macro say(x) %}[{{ x }}]{% endmacro %}{{ say(messages[-1].role) }}", "[assistant]");
    }

    #[test]
    fn space_round_tags_is_trimmed_as_in_transformers() {
        gives("a\n  {% if true %}\n  b\n  {% endif %}\nc", "a\n  b\nc");
        gives("a  {{- 'b' -}}  \n c{# no #}", "abc");
        gives("a\n{{ 'b\\n\\'' }}\n", "a\nb\n'");
        gives("  {% if true %}\n  {% if true %} x{% endif %}{% endif %}", " x");
        gives("{% generation %}\n x {%- endgeneration -%} \n.", " x.");
    }

    #[test]
    fn what_templates_use_of_python_is_there() {
        gives("{{ messages[0].content.strip() }}|{{ 'a b'.split(' ')[1] }}|{{ 'ab'.startswith('a') }}", "hi|b|True");
        gives("{{ 'A'.lower() }}{{ 'a'.upper() }}{{ {'a': 1}.get('b', 2) }}", "aA2");
        gives("{% for k, v in {'a': 1}.items() %}{{ k }}={{ v }}{% endfor %}", "a=1");
        gives(
            "{{ {'a': [1, true, none], 'b': \"<é>&'\\\"\\\\u003c\"} | tojson }}",
            r#"{"a": [1, true, null], "b": "<é>&'\"\\u003c"}"#,
        );
        gives("{{ {'a': [1]} | tojson(indent=2) }}", "{\n  \"a\": [\n    1\n  ]\n}");
        gives("{% if tools is none and nothing is not defined %}{{ nothing }}x{% endif %}", "x");
        assert_eq!(said("{{ strftime_now('%Y') }}").unwrap().len(), 4);
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        let day = |seconds| strftime(seconds, "%a %d %b %Y %H:%M:%S").unwrap();
        assert_eq!(day(0), "Thu 01 Jan 1970 00:00:00");
        assert_eq!(day(951_782_400), "Tue 29 Feb 2000 00:00:00");
        assert_eq!(day(1_735_689_599), "Tue 31 Dec 2024 23:59:59");
        assert_eq!(day(4_107_542_400), "Mon 01 Mar 2100 00:00:00");
        assert!(strftime(0, "%Q").unwrap_err().contains("%Q"));
    }

    #[test]
    fn what_is_not_understood_is_said() {
        for (template, word) in [
            ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
            ("{{ messages | nonsense }}", "nonsense"),
            ("{{ nothing.more }}", "undefined"),
            ("{% if true %}", "end of input"),
            ("{% endif %}", "endif"),
            ("{{ 'open }}", "string"),
            ("{% include 'secret' %}", "secret"),
            ("{{ messages | tojson(sort=1) }}", "sort"),
        ] {
            let message = said(template).unwrap_err();
            assert!(message.contains(word), "{template}: {message}");
        }
    }

    #[test]
    fn templates_that_never_end_are_stopped() {
        let forever = "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}\
                       {% endfor %}{% endfor %}{% endfor %}";
        assert!(said(forever).is_err());
        let long =
            "{% for a in range(9999) %}{% for b in range(99) %}{{ '0123456789' * 1000 }}{% endfor %}{% endfor %}";
        assert!(said(long).unwrap_err().contains("longer than"));
        for deep in [format!("{{{{ {}1 }}}}", "(".repeat(100_000)), "{% if true %}".repeat(100_000)] {
            assert!(said(&deep).is_err());
        }
        assert!(said("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}").is_err());
    }
}
