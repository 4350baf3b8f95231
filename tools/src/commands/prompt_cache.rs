//! `generate --save-cache` and `--load-cache`: what was computed for the beginning of a prompt, kept in a file.
//!
//! Saved is all of the prompt but its last token, which both the run that saves and the run that loads feed by
//! itself: so their logits are the same bit for bit.

use crate::cli::Generate;
use crate::open::Opened;
use anyhow::{Result, bail};
use tritter_model::cache_file::{Prompt, fingerprint, load, save};
use tritter_model::generator::Job;
use tritter_model::session::Session;

/// Puts the cache of a file into the session, and writes that of the prompt; the job then says what is fed already.
pub(crate) fn prepare(args: &Generate, opened: &Opened, session: &mut Session, jobs: &mut [Job]) -> Result<()> {
    if args.load_cache.is_none() && args.save_cache.is_none() {
        return Ok(());
    }
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
