//! Races, judged twice: random programs of reads, writes and barriers run on the emulator, and every
//! pair of their accesses is compared here. The emulator must report a race exactly if there is one.

use libtest_mimic::{Arguments, Failed, Trial};
use std::path::PathBuf;
use tritter_cuda::driver::{Driver, Fault, Launch, Operand};
use tritter_cuda_emulator::{Compiler, Emulator, Options};
use tritter_runtime::random::Random;

const THREADS: usize = 64;
const PROGRAMS: usize = 300;

fn main() {
    let arguments = Arguments::from_args();
    let missing = Compiler::find().err();
    let trial = |name: &str, blocks, shared| match &missing {
        Some(why) => Trial::test(format!("{name} ({why})"), || Ok(())).with_ignored_flag(true),
        None => Trial::test(name, move || agree(blocks, shared)),
    };
    let trials =
        vec![trial("shared", 1, true), trial("global", 1, false), trial("blocks", 2, false), trial("both", 2, true)];
    libtest_mimic::run(&arguments, trials).exit();
}

/// What a thread does in a step.
#[derive(Clone, Copy)]
enum Action {
    Nothing,
    Access { write: bool, at: usize, width: u32 },
}

/// What comes between two steps.
#[derive(Clone, Copy, PartialEq)]
enum Sync {
    Nothing,
    Warp,
    Block,
}

struct Program {
    blocks: usize,
    shared: bool,
    /// By step and thread.
    actions: Vec<Action>,
    syncs: Vec<Sync>,
}

impl Program {
    fn random(random: &mut Random, blocks: usize, shared: bool) -> Program {
        let steps = 2 + random.below(6) as usize;
        // Few threads do something, so that about half of the programs have no race.
        let rarity = 16 + random.below(80 * (blocks * blocks) as u64);
        let mut action = || {
            if random.below(rarity) > 0 {
                return Action::Nothing;
            }
            let width = random.below(3) as u32;
            let at = (random.below(16) as usize) >> width << width;
            Action::Access { write: random.below(3) == 0, at, width }
        };
        let actions = (0..steps * blocks * THREADS).map(|_| action()).collect();
        let sync = |n| [Sync::Nothing, Sync::Warp, Sync::Warp, Sync::Block][n as usize];
        let syncs = (0..steps).map(|_| sync(random.below(4))).collect();
        Program { blocks, shared, actions, syncs }
    }

    /// By definition: two accesses to a byte by two threads, one a write, that nothing orders.
    fn has_race(&self) -> bool {
        let threads = self.blocks * THREADS;
        let accesses: Vec<(usize, usize, bool, usize, u32)> = (self.actions.iter().enumerate())
            .filter_map(|(i, action)| match *action {
                Action::Access { write, at, width } => Some((i / threads, i % threads, write, at, width)),
                Action::Nothing => None,
            })
            .collect();
        let ordered = |step_a: usize, a: usize, step_b: usize, b: usize| {
            let between = &self.syncs[step_a.min(step_b)..step_a.max(step_b)];
            let warp = a / 32 == b / 32 && between.contains(&Sync::Warp);
            a == b || a / THREADS == b / THREADS && (warp || between.contains(&Sync::Block))
        };
        accesses.iter().enumerate().any(|(i, &(step_a, a, write_a, at_a, width_a))| {
            accesses[..i].iter().any(|&(step_b, b, write_b, at_b, width_b)| {
                let overlap = at_a < at_b + (1 << width_b) && at_b < at_a + (1 << width_a);
                let apart = self.shared && a / THREADS != b / THREADS;
                overlap && !apart && (write_a || write_b) && !ordered(step_a, a, step_b, b)
            })
        })
    }

    fn words(&self) -> (Vec<u32>, Vec<u32>) {
        let word = |action: &Action| match *action {
            Action::Nothing => 0,
            Action::Access { write, at, width } => (1 + u32::from(write)) | width << 2 | (at as u32) << 4,
        };
        (self.actions.iter().map(word).collect(), self.syncs.iter().map(|&sync| sync as u32).collect())
    }
}

fn agree(blocks: usize, shared: bool) -> Result<(), Failed> {
    let kernels = Some(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/planted"));
    let driver = Emulator::open(Options { kernels, ..Options::default() })?;
    let mut random = Random::new(blocks as u64 * 2 + u64::from(shared));
    let mut races = 0;
    for number in 0..PROGRAMS {
        let program = Program::random(&mut random, blocks, shared);
        let expected = program.has_race();
        races += usize::from(expected);
        // Several orders of threads: the verdict may not depend on them.
        for _ in 0..4 {
            let found = match run(&driver, &program) {
                Ok(()) => false,
                Err(Fault::Failed(message)) if message.contains("race: ") => true,
                Err(fault) => return Err(fault.to_string().into()),
            };
            if found != expected {
                return Err(format!("program {number}: race {expected}, and the emulator says {found}").into());
            }
        }
    }
    // The programs are worth something only if both verdicts occur.
    if races * 5 < PROGRAMS || races * 5 > PROGRAMS * 4 {
        return Err(format!("{races} of {PROGRAMS} programs have a race").into());
    }
    Ok(())
}

fn run(driver: &Emulator, program: &Program) -> Result<(), Fault> {
    let (actions, syncs) = program.words();
    let mut operands = Vec::new();
    let threads = program.blocks * THREADS;
    for (words, writes) in [(actions, false), (syncs, false), (vec![0; 4], true), (vec![0; threads], true)] {
        let bytes = 4 * words.len() as u64;
        let address = driver.alloc(bytes)?;
        driver.upload(address, bytemuck::cast_slice(&words))?;
        operands.push(Operand { address, bytes, reads: true, writes });
    }
    let addresses: Vec<u64> = operands.iter().map(|o| o.address).collect();
    let params = [program.syncs.len() as u32, program.shared.into()];
    let launched = driver.launch(&Launch {
        kernel: driver.kernel("programs", "programs")?,
        grid: [program.blocks as u32, 1, 1],
        block: THREADS as u32,
        shared: 0,
        params: bytemuck::bytes_of(&params).to_vec(),
        operands,
    });
    addresses.into_iter().for_each(|address| driver.free(address));
    launched
}
