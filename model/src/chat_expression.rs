//! Expressions of a chat template: parsed with the precedence of Jinja
//! (`or`, `and`, `not`, comparison, `+`, then filters and subscripts).

use serde_json::Value;

use crate::chat_template::MAX_DEPTH;

/// Names in force, the innermost last.
pub(crate) type Scope = Vec<(String, Value)>;

/// A parsed expression.
pub(crate) enum Expression {
    Constant(Value),
    Name(String),
    Item(Box<Expression>, Box<Expression>),
    Trim(Box<Expression>),
    Not(Box<Expression>),
    Pair(Operator, Box<Expression>, Box<Expression>),
}

/// What joins two expressions.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Operator {
    Or,
    And,
    Equal,
    Unequal,
    Plus,
}

/// Operators by how loosely they bind, with their spellings.
const LEVELS: &[&[(&str, Operator)]] = &[
    &[("or", Operator::Or)],
    &[("and", Operator::And)],
    &[("==", Operator::Equal), ("!=", Operator::Unequal)],
    &[("+", Operator::Plus)],
];
/// `not` binds more tightly than `and`, more loosely than a comparison.
const NOT_LEVEL: usize = 2;

/// Parses the whole of `text`.
pub(crate) fn parse_expression(text: &str) -> Result<Expression, String> {
    let mut parser = Parser { rest: text.trim(), depth: 0 };
    let expression = parser.level(0)?;
    if parser.rest.is_empty() {
        return Ok(expression);
    }
    Err(format!("`{}` is not supported in `{text}`", parser.rest))
}

struct Parser<'a> {
    rest: &'a str,
    depth: usize,
}

impl Parser<'_> {
    fn level(&mut self, level: usize) -> Result<Expression, String> {
        if level == 0 {
            self.enter()?;
        }
        if level == NOT_LEVEL && self.take("not") {
            self.enter()?;
            let inner = self.level(NOT_LEVEL)?;
            self.depth -= 1;
            return Ok(Expression::Not(Box::new(inner)));
        }
        let Some(operators) = LEVELS.get(level) else {
            return self.suffixed();
        };
        let mut left = self.level(level + 1)?;
        // Long chains nest as deeply as parentheses when they are worked out.
        let mut links = 0;
        while let Some(&(_, operator)) = operators.iter().find(|(word, _)| self.take(word)) {
            links += 1;
            if links > MAX_DEPTH {
                return Err(format!("more than {MAX_DEPTH} parts are joined, too deep"));
            }
            let right = self.level(level + 1)?;
            left = Expression::Pair(operator, Box::new(left), Box::new(right));
        }
        if level == 0 {
            self.depth -= 1;
        }
        Ok(left)
    }

    fn enter(&mut self) -> Result<(), String> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(format!("an expression is nested more than {MAX_DEPTH} deep"));
        }
        Ok(())
    }

    /// A value with its subscripts and filters.
    fn suffixed(&mut self) -> Result<Expression, String> {
        let mut value = self.primary()?;
        let mut links = 0;
        loop {
            links += 1;
            if links > MAX_DEPTH {
                return Err(format!("more than {MAX_DEPTH} subscripts or filters, too deep"));
            }
            if self.take("[") {
                let key = self.level(0)?;
                self.expect("]")?;
                value = Expression::Item(Box::new(value), Box::new(key));
            } else if self.take(".") {
                let key = Value::String(self.name()?);
                value = Expression::Item(Box::new(value), Box::new(Expression::Constant(key)));
            } else if self.take("|") {
                match self.name()?.as_str() {
                    "trim" => value = Expression::Trim(Box::new(value)),
                    other => return Err(format!("the filter `{other}` is not supported")),
                }
            } else {
                return Ok(value);
            }
        }
    }

    fn primary(&mut self) -> Result<Expression, String> {
        if self.take("(") {
            let inner = self.level(0)?;
            self.expect(")")?;
            return Ok(inner);
        }
        match self.rest.chars().next() {
            Some(quote @ ('\'' | '"')) => Ok(Expression::Constant(self.string(quote)?)),
            Some(digit) if digit.is_ascii_digit() => {
                let digits = self.while_true(|c| c.is_ascii_digit());
                let number: u64 = digits.parse().map_err(|_| format!("`{digits}` is too large"))?;
                Ok(Expression::Constant(number.into()))
            }
            _ => Ok(match self.name()?.as_str() {
                "true" | "True" => Expression::Constant(Value::Bool(true)),
                "false" | "False" => Expression::Constant(Value::Bool(false)),
                "none" | "None" => Expression::Constant(Value::Null),
                other => Expression::Name(other.to_owned()),
            }),
        }
    }

    fn string(&mut self, quote: char) -> Result<Value, String> {
        let mut text = String::new();
        let mut letters = self.rest.char_indices().skip(1);
        while let Some((at, letter)) = letters.next() {
            if letter == quote {
                self.rest = self.rest.get(at + 1..).unwrap_or_default().trim_start();
                return Ok(Value::String(text));
            }
            if letter != '\\' {
                text.push(letter);
                continue;
            }
            match letters.next() {
                Some((_, 'n')) => text.push('\n'),
                Some((_, 't')) => text.push('\t'),
                Some((_, 'r')) => text.push('\r'),
                Some((_, same @ ('\\' | '\'' | '"'))) => text.push(same),
                other => return Err(format!("the escape \\{:?} is not supported", other)),
            }
        }
        Err(format!("the string `{}` has no end", self.rest))
    }

    fn name(&mut self) -> Result<String, String> {
        let name = self.while_true(|c| c.is_alphanumeric() || c == '_');
        if name.is_empty() {
            return Err(format!("a value is missing before `{}`", self.rest));
        }
        Ok(name)
    }

    fn while_true(&mut self, keep: impl Fn(char) -> bool) -> String {
        let end = self.rest.find(|c| !keep(c)).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest.trim_start();
        word.to_owned()
    }

    /// Takes a word or sign if it comes next; a word must end there.
    fn take(&mut self, sign: &str) -> bool {
        let Some(after) = self.rest.strip_prefix(sign) else {
            return false;
        };
        let word = sign.starts_with(char::is_alphabetic);
        if word && after.starts_with(|c: char| c.is_alphanumeric() || c == '_') {
            return false;
        }
        self.rest = after.trim_start();
        true
    }

    fn expect(&mut self, sign: &str) -> Result<(), String> {
        if self.take(sign) {
            return Ok(());
        }
        Err(format!("`{sign}` is missing before `{}`", self.rest))
    }
}

impl Expression {
    /// Works the expression out.
    pub(crate) fn value(&self, scope: &Scope) -> Result<Value, String> {
        match self {
            Self::Constant(value) => Ok(value.clone()),
            Self::Name(name) => {
                let found = scope.iter().rev().find(|(known, _)| known == name);
                found.map(|(_, value)| value.clone()).ok_or_else(|| format!("`{name}` is unknown"))
            }
            Self::Item(of, key) => {
                let (of, key) = (of.value(scope)?, key.value(scope)?);
                let found = match &key {
                    Value::String(key) => of.get(key),
                    Value::Number(at) => at.as_u64().and_then(|at| of.get(at as usize)),
                    _ => None,
                };
                found.cloned().ok_or_else(|| format!("there is no {key} in it"))
            }
            Self::Trim(inner) => Ok(text_of(&inner.value(scope)?)?.trim().into()),
            Self::Not(inner) => Ok((!is_true(&inner.value(scope)?)).into()),
            Self::Pair(operator, left, right) => pair(*operator, left, right, scope),
        }
    }
}

fn pair(operator: Operator, left: &Expression, right: &Expression, scope: &Scope) -> Result<Value, String> {
    let left = left.value(scope)?;
    match operator {
        Operator::Or if is_true(&left) => Ok(left),
        Operator::And if !is_true(&left) => Ok(left),
        Operator::Or | Operator::And => right.value(scope),
        Operator::Equal => Ok((left == right.value(scope)?).into()),
        Operator::Unequal => Ok((left != right.value(scope)?).into()),
        Operator::Plus => Ok((text_of(&left)? + &text_of(&right.value(scope)?)?).into()),
    }
}

/// Truth as in Python.
pub(crate) fn is_true(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(flag) => *flag,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
    }
}

/// A value that is text; other kinds are not printed.
pub(crate) fn text_of(value: &Value) -> Result<String, String> {
    let text = value.as_str().map(str::to_owned);
    text.ok_or_else(|| format!("{value} is used as text"))
}
