//! Renders the chat template of `tokenizer_config.json`.
//!
//! Templates are Jinja; this is the part of it that simple ones use: text,
//! `{{ … }}`, `for … in`, `if`/`elif`/`else`, strings, names, `a['b']`, `a.b`,
//! `+`, `==`, `!=`, `not`, `and`, `or`, the filter `trim`, and the trimming of
//! space around tags as transformers sets it (`trim_blocks`, `lstrip_blocks`).
//! Anything else is an error that quotes it, never a guess.

use serde_json::{Value, json};

use crate::chat_expression::{Expression, Scope, is_true, parse_expression, text_of};

/// Nesting of tags and of parentheses that is followed.
pub(crate) const MAX_DEPTH: usize = 32;
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

/// Renders a conversation; `prompt` asks for the opening of the next answer.
/// The error says what in the template is not understood.
pub fn render(template: &str, messages: &[Message], prompt: bool) -> Result<String, String> {
    let tags = split(template)?;
    let mut rest = tags.as_slice();
    let nodes = parse_nodes(&mut rest, 0)?;
    if let Some(tag) = rest.first() {
        return Err(format!("`{}` closes nothing", tag.word()));
    }
    let list: Vec<Value> = messages.iter().map(|m| json!({ "role": m.role, "content": m.content })).collect();
    let mut scope = Scope::new();
    scope.push(("messages".to_owned(), Value::Array(list)));
    scope.push(("add_generation_prompt".to_owned(), Value::Bool(prompt)));
    let mut out = String::new();
    write_nodes(&nodes, &mut scope, &mut out)?;
    Ok(out)
}

/// A stretch of the template.
#[derive(Debug, PartialEq)]
enum Tag<'a> {
    Text(&'a str),
    Print(&'a str),
    Block(&'a str),
}

impl<'a> Tag<'a> {
    /// The first word of a block; empty for other stretches.
    fn word(&self) -> &'a str {
        match self {
            Tag::Block(inside) => inside.split_whitespace().next().unwrap_or_default(),
            _ => "",
        }
    }
}

enum Node<'a> {
    Text(&'a str),
    Print(Expression),
    For {
        name: String,
        list: Expression,
        body: Vec<Node<'a>>,
    },
    /// Conditions in order with their bodies; `else` has none.
    If(Vec<(Option<Expression>, Vec<Node<'a>>)>),
}

/// Cuts a template at its tags and trims the text beside them.
fn split(template: &str) -> Result<Vec<Tag<'_>>, String> {
    let mut tags = Vec::new();
    // One line end at the end of a template does not count.
    let mut rest = template.strip_suffix('\n').unwrap_or(template);
    let mut line_start = true;
    while let Some(at) = next_tag(rest) {
        let (text, from) = rest.split_at(at);
        let (open, inside) = from.split_at(2);
        let close = match open {
            "{{" => "}}",
            "{%" => "%}",
            _ => "#}",
        };
        let (inside, after) = inside.split_once(close).ok_or_else(|| format!("`{open}` is open"))?;
        let text = match inside.strip_prefix('-') {
            Some(_) => text.trim_end(),
            // A block alone on its line takes the space before it along.
            None if open != "{{" => match text.rfind('\n') {
                Some(line) if text.trim_end().len() <= line => text.get(..=line).unwrap_or(text),
                None if line_start && text.trim().is_empty() => "",
                _ => text,
            },
            None => text,
        };
        tags.push(Tag::Text(text));
        rest = match inside.strip_suffix('-') {
            Some(_) => after.trim_start(),
            None if open != "{{" => after.strip_prefix('\n').unwrap_or(after),
            None => after,
        };
        let passed = after.len() - rest.len();
        line_start = after.get(..passed).is_some_and(|space| space.ends_with('\n'));
        let inside = inside.strip_prefix('-').unwrap_or(inside);
        let inside = inside.strip_suffix('-').unwrap_or(inside).trim();
        match open {
            "{{" => tags.push(Tag::Print(inside)),
            "{%" => tags.push(Tag::Block(inside)),
            _ => {}
        }
    }
    tags.push(Tag::Text(rest));
    Ok(tags)
}

/// Where the next tag opens; one pass, so long templates stay linear.
fn next_tag(text: &str) -> Option<usize> {
    let opens = |after: Option<&u8>| matches!(after, Some(b'{' | b'%' | b'#'));
    let mut braces = text.match_indices('{').map(|(at, _)| at);
    braces.find(|at| opens(text.as_bytes().get(at + 1)))
}

/// Nodes up to a block that belongs to the caller (`endfor`, `else`, …).
fn parse_nodes<'a>(rest: &mut &[Tag<'a>], depth: usize) -> Result<Vec<Node<'a>>, String> {
    if depth > MAX_DEPTH {
        return Err(format!("tags are nested more than {MAX_DEPTH} deep"));
    }
    let mut nodes = Vec::new();
    while let Some((tag, after)) = rest.split_first() {
        match (tag, tag.word()) {
            (Tag::Text(text), _) => nodes.push(Node::Text(text)),
            (Tag::Print(inside), _) => nodes.push(Node::Print(parse_expression(inside)?)),
            (Tag::Block(_), "endfor" | "endif" | "else" | "elif") => break,
            (Tag::Block(inside), "for") => {
                *rest = after;
                nodes.push(parse_for(inside, rest, depth)?);
                continue;
            }
            (Tag::Block(inside), "if") => {
                *rest = after;
                nodes.push(parse_if(inside, rest, depth)?);
                continue;
            }
            (Tag::Block(inside), _) => return Err(format!("`{inside}` is not supported")),
        }
        *rest = after;
    }
    Ok(nodes)
}

fn parse_for<'a>(inside: &str, rest: &mut &[Tag<'a>], depth: usize) -> Result<Node<'a>, String> {
    let header = inside.strip_prefix("for").unwrap_or_default();
    let (name, list) = header.split_once(" in ").ok_or_else(|| format!("`{inside}` is not supported"))?;
    let name = name.trim().to_owned();
    if name.contains(|c: char| !c.is_alphanumeric() && c != '_') {
        return Err(format!("`{inside}` is not supported"));
    }
    let list = parse_expression(list)?;
    let body = parse_nodes(rest, depth + 1)?;
    close(rest, "endfor")?;
    Ok(Node::For { name, list, body })
}

fn parse_if<'a>(inside: &str, rest: &mut &[Tag<'a>], depth: usize) -> Result<Node<'a>, String> {
    let mut condition = Some(parse_expression(inside.strip_prefix("if").unwrap_or_default())?);
    let mut branches = Vec::new();
    loop {
        let last = condition.is_none();
        branches.push((condition, parse_nodes(rest, depth + 1)?));
        let Some((Tag::Block(next), after)) = rest.split_first() else {
            return Err("`if` has no `endif`".to_owned());
        };
        condition = match next.strip_prefix("elif") {
            Some(text) if !last => Some(parse_expression(text)?),
            None if *next == "else" && !last => None,
            _ => {
                close(rest, "endif")?;
                return Ok(Node::If(branches));
            }
        };
        *rest = after;
    }
}

fn close(rest: &mut &[Tag<'_>], word: &str) -> Result<(), String> {
    match rest.split_first() {
        Some((tag, after)) if tag.word() == word => {
            *rest = after;
            Ok(())
        }
        _ => Err(format!("`{word}` is missing")),
    }
}

fn write_nodes(nodes: &[Node<'_>], scope: &mut Scope, out: &mut String) -> Result<(), String> {
    for node in nodes {
        match node {
            Node::Text(text) => out.push_str(text),
            Node::Print(value) => out.push_str(&text_of(&value.value(scope)?)?),
            Node::For { name, list, body } => {
                let Value::Array(items) = list.value(scope)? else {
                    return Err(format!("`for {name}` runs over something that is no list"));
                };
                for item in items {
                    scope.push((name.clone(), item));
                    write_nodes(body, scope, out)?;
                    scope.pop();
                }
            }
            Node::If(branches) => {
                for (condition, body) in branches {
                    let taken = match condition {
                        Some(condition) => is_true(&condition.value(scope)?),
                        None => true,
                    };
                    if taken {
                        write_nodes(body, scope, out)?;
                        break;
                    }
                }
            }
        }
        if out.len() > MAX_OUTPUT {
            return Err(format!("the result is longer than {MAX_OUTPUT} bytes"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn said(template: &str) -> Result<String, String> {
        let message = |role: &str, content: &str| Message { role: role.to_owned(), content: content.to_owned() };
        render(template, &[message("user", " hi "), message("assistant", "yes")], true)
    }

    #[test]
    fn loops_conditions_and_filters_work() {
        let template = "{% for m in messages %}<{{ m['role'] + '>' + m.content | trim }}{% endfor %}\
                        {% if add_generation_prompt %}\n!{% else %}?{% endif %}";
        assert_eq!(said(template).unwrap(), "<user>hi<assistant>yes!");
        let template = "{%- for m in messages -%}\n {% if m.role == 'user' %}U\
                        {% elif not (m.role != 'assistant') and true %}A{% endif %}\n{% endfor %}.";
        assert_eq!(said(template).unwrap(), "UA.");
    }

    #[test]
    fn space_round_tags_is_trimmed_as_in_transformers() {
        assert_eq!(said("a\n  {% if true %}\n  b\n  {% endif %}\nc").unwrap(), "a\n  b\nc");
        assert_eq!(said("a  {{- 'b' -}}  \n c{# no #}").unwrap(), "abc");
        assert_eq!(said("a\n{{ 'b\\n\\'' }}\n").unwrap(), "a\nb\n'");
        assert_eq!(said("  {% if true %}\n  {% if true %} x{% endif %}{% endif %}").unwrap(), " x");
    }

    #[test]
    fn what_is_not_understood_is_quoted() {
        for (template, word) in [
            ("{% set x = 1 %}", "set x = 1"),
            ("{{ messages | length }}", "length"),
            ("{{ messages[0:1] }}", ":"),
            ("{{ nothing }}", "nothing"),
            ("{% if true %}", "endif"),
            ("{% endif %}", "endif"),
            ("{% for a, b in messages %}{% endfor %}", "for a, b"),
            ("{{ 'open }}", "'open"),
            ("{{ open", "{{"),
        ] {
            let message = said(template).unwrap_err();
            assert!(message.contains(word), "{template}: {message}");
        }
        let deep = format!("{{{{ {}1 }}}}", "(".repeat(100_000));
        assert!(said(&deep).unwrap_err().contains("deep"));
        let deep = "{% if true %}".repeat(100_000);
        assert!(said(&deep).unwrap_err().contains("deep"));
    }
}
