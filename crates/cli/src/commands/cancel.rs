//! `vhdkit cancel`: asking the operations on a disk to stop, wherever they run.

use std::thread::sleep;

use vhdkit::operation::{PublishedOperation, Standing, request_cancel};

use super::progress::{Row, ending};
use super::{Session, text};
use crate::args::CancelArgs;
use crate::failure::{DONE, Failure};
use crate::progress::INTERVAL;

pub(crate) fn run(args: &CancelArgs, session: &mut Session) -> Result<u8, Failure> {
    let mut asked: Vec<(PublishedOperation, Standing)> = request_cancel(&args.path)?
        .into_iter()
        .map(|operation| (operation, Standing::Running))
        .collect();
    let out = &mut session.out;
    if !args.output.json {
        for (operation, _) in &asked {
            let (name, path) = (operation.name(), text(operation.path()));
            let pid = operation.pid();
            out.line(format!("asked the {name} of {path} (pid {pid}) to stop"))?;
        }
        // Seen while it is waited for.
        out.flush()?;
    }
    if !args.no_wait {
        wait(&mut asked);
    }
    if args.output.json {
        let rows: Vec<Row<'_>> = asked.iter().map(|(o, s)| Row::of(o, *s)).collect();
        out.json(&rows)?;
    } else if !args.no_wait {
        for (operation, standing) in &asked {
            out.line(ending(operation, *standing))?;
        }
    }
    Ok(DONE)
}

/// Until none of them is running any more.
fn wait(asked: &mut [(PublishedOperation, Standing)]) {
    loop {
        for (operation, standing) in &mut *asked {
            *standing = operation.refresh();
        }
        if asked.iter().all(|(_, s)| *s != Standing::Running) {
            return;
        }
        sleep(INTERVAL / 2);
    }
}
