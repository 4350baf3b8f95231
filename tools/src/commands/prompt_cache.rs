//! `--save-cache` and `--load-cache`: what was computed for the beginning of a prompt, or for a conversation, kept in
//! a file.
//!
//! `generate` saves all of the prompt but its last token, which both the run that saves and the run that loads feed
//! by itself: so their logits are the same bit for bit. `chat` saves the conversation with what the cache holds of it.

use crate::cli::{Chat, Generate};
use crate::open::Opened;
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use tritter_model::cache_file::{Prompt, fingerprint, load, save};
use tritter_model::chat_template::Message;
use tritter_model::generator::Job;
use tritter_model::session::Session;

/// Puts the cache of a file into the session, and writes that of the prompt; the job then says what is fed already.
pub(crate) fn prepare(args: &Generate, opened: &Opened, session: &mut Session, jobs: &mut [Job]) -> Result<()> {
    if args.load_cache.is_none() && args.save_cache.is_none() {
        return Ok(());
    }
    place(args.save_cache.as_deref())?;
    let [job] = jobs else {
        bail!("--save-cache and --load-cache are about one prompt, and there are {}", jobs.len());
    };
    let fingerprint = fingerprint(&opened.config, &*opened.source()?)?;
    let most = job.ids.len() - 1;
    if let Some(path) = &args.load_cache {
        let Prompt { ids, .. } = load(path, session, 0, fingerprint)?;
        let same = ids.iter().zip(&job.ids).take_while(|(a, b)| a == b).count();
        if same == 0 {
            bail!("{}: the prompt does not begin with the text of this cache", path.display());
        }
        job.cached = session.rewind(0, same.min(most))?;
        eprintln!("note: {} of {} prompt tokens come from {}", job.cached, job.ids.len(), path.display());
    }
    if let Some(path) = &args.save_cache {
        if most == 0 {
            bail!("--save-cache: a prompt of one token has nothing to save; give a longer one");
        }
        session.prefill(&job.ids[job.cached..most])?;
        let prompt = Prompt { ids: job.ids[..most].to_vec(), conversation: None };
        save(path, session, 0, &prompt, fingerprint)?;
        job.cached = most;
    }
    Ok(())
}

/// Where a file is to be written at the end: better refused before than after the work.
fn place(path: Option<&Path>) -> Result<()> {
    let Some(path) = path else { return Ok(()) };
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    if path.is_dir() || folder.is_some_and(|folder| !folder.is_dir()) {
        bail!("{}: --save-cache takes a file in a folder that is there", path.display());
    }
    Ok(())
}

/// A conversation that a file holds.
#[derive(Default)]
pub(crate) struct Begun {
    /// What was said; nothing where the file is of a prompt.
    pub(crate) messages: Vec<Message>,
    /// Tokens that the cache holds.
    pub(crate) ids: Vec<u32>,
}

/// Where a conversation comes from and goes to.
pub(crate) struct Kept {
    save: Option<PathBuf>,
    fingerprint: u64,
}

impl Kept {
    /// Puts the conversation of `--load-cache` into the session, if there is one.
    pub(crate) fn begin(args: &Chat, opened: &Opened, session: &mut Session) -> Result<(Kept, Begun)> {
        place(args.save_cache.as_deref())?;
        let wanted = args.save_cache.is_some() || args.load_cache.is_some();
        let fingerprint = if wanted { fingerprint(&opened.config, &*opened.source()?)? } else { 0 };
        let kept = Kept { save: args.save_cache.clone(), fingerprint };
        let Some(path) = &args.load_cache else { return Ok((kept, Begun::default())) };
        let Prompt { ids, conversation } = load(path, session, 0, fingerprint)?;
        let messages = conversation.as_deref().map(messages).transpose();
        let messages = messages.with_context(|| format!("{}: cannot read its conversation", path.display()))?;
        if messages.is_some() && args.system.is_some() {
            bail!("{}: holds a conversation, which --system cannot begin anew; leave that out", path.display());
        }
        let messages = messages.unwrap_or_default();
        eprintln!("note: {} messages and {} tokens come from {}", messages.len(), ids.len(), path.display());
        Ok((kept, Begun { messages, ids }))
    }

    /// Writes the conversation, whose tokens in the cache are `ids`, if that was asked for.
    pub(crate) fn end(&self, session: &Session, messages: &[Message], ids: Vec<u32>) -> Result<()> {
        let Some(path) = &self.save else { return Ok(()) };
        if ids.is_empty() {
            eprintln!("note: nothing was said; {} is not written", path.display());
            return Ok(());
        }
        let one = |message: &Message| json!({ "role": message.role, "content": message.content });
        let conversation = Value::from_iter(messages.iter().map(one)).to_string();
        let prompt = Prompt { ids, conversation: Some(conversation) };
        save(path, session, 0, &prompt, self.fingerprint)?;
        eprintln!("note: the conversation is kept in {}", path.display());
        Ok(())
    }
}

/// Messages as [`Kept::end`] writes them.
fn messages(text: &str) -> Result<Vec<Message>> {
    let list: Value = serde_json::from_str(text)?;
    let one = |message: &Value| {
        let field = |name: &str| message.get(name).and_then(Value::as_str);
        field("role").zip(field("content")).map(|(role, content)| Message::new(role, content))
    };
    let list = list.as_array().and_then(|list| list.iter().map(one).collect::<Option<Vec<_>>>());
    list.context("it should be a list of messages with role and content")
}
