//! `engine plot`.

use super::args::PlotArgs;
use crate::error::{Error, Result};
use crate::files;
use crate::log::{Which, plot_logs_md};
use crate::terminal::message;

pub fn run(args: &PlotArgs) -> Result<()> {
    let text = std::fs::read_to_string(&args.logs)
        .map_err(|error| Error::unreadable(&args.logs, &error, "a logs.md that `engine train` wrote"))?;
    let which = if args.all { Which::All } else { Which::Last };
    let svg = plot_logs_md(&text, which).map_err(|error| error.within(args.logs.display()))?;
    files::write_bytes_atomically("curve", &args.output, svg.as_bytes())?;
    message(format!("wrote {}", args.output.display()));
    Ok(())
}
