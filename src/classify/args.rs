//! The command line of `classify`.

use crate::data::Limits;
use crate::infer::Precision;
use crate::simd::isa::Isa;
use lexopt::prelude::*;
use std::ffi::OsString;
use std::path::PathBuf;

/// More threads than any machine has cores: the system would refuse them one by one.
const MAX_THREADS: usize = 1024;

pub const HELP: &str = "\
Classifies pictures on the CPU with a model file that `engine export --format cpu` wrote.

Usage: classify --model FILE [OPTIONS] IMAGE...
       classify --model FILE [OPTIONS] --stdio

Arguments:
  IMAGE...           JPEG, PNG or WebP; - reads one from standard input. Pictures are seen as a viewer shows
                     them: turned by their EXIF orientation, transparency on white

Options:
  --model FILE       The model
  --top N            How many classes to name [default: 5]
  --json             One JSON object a line: {\"file\", \"predictions\": [{\"index\", \"label\", \"probability\"}]}
  --stdio            Answer requests until the end of standard input: one JSON object a line in, one a line out
  --max-pixels N     Refuse larger pictures before they are decoded [default: 178956970, Pillow's limit]
  --threads N        Threads; 0 means one a core [default: 0]
  --isa NAME         Instructions to use: auto, avx512, avx2, neon, portable [default: auto]
  --precision NAME   auto, fp32, bf16 or int8 [default: auto: int8 where the model has 8-bit numbers and the
                     machine multiplies bytes quickly, else bf16 where it has instructions for that, else fp32]
  --profile          After the answers, a table on standard error: each layer's time and its share of what this
                     machine was measured to be capable of
  -h, --help         This text
  -V, --version      The version

Requests of --stdio:
  {\"id\": any, \"file\": PATH, \"top\": 5, \"precision\": \"auto\"}        or \"image\": the file's bytes in base64; id, top
                                                               and precision may be left out
  {\"id\", \"file\", \"predictions\", \"milliseconds\": {\"decode\", \"run\"}, \"path\": \"avx512 int8\"}       an answer
  {\"id\", \"error\": sentence}                                   what is wrong with this request; the next is answered
  with \"explain\": true, an answer has \"explanation\": {\"seen\", \"maps\"}: the pixels that the network saw, and what each
  part of them adds to the logit of each prediction
  {\"id\": any, \"describe\": true}                                what the model file says of itself, and the machine

Exit codes:
  0   done
  1   failed
  2   command line
  3   bad input data; the file is named. Other pictures of the command line are answered
";

/// What is asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct Args {
    pub model: PathBuf,
    pub images: Vec<PathBuf>,
    pub stdio: bool,
    pub top: usize,
    pub json: bool,
    /// Width times height of the largest picture that is decoded.
    pub max_pixels: u64,
    pub threads: usize,
    pub isa: Isa,
    /// `None`: the fastest.
    pub precision: Option<Precision>,
    pub profile: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Parsed {
    Help,
    Version,
    Run(Args),
}

/// Reads the arguments behind the program's name; the error is a sentence.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Parsed, String> {
    let mut parser = lexopt::Parser::from_args(arguments);
    let (mut model, mut images, mut stdio, mut json, mut profile) = (None, vec![], false, false, false);
    let mut max_pixels = Limits::default().pixels;
    let (mut top, mut threads, mut isa, mut precision) = (5, 0, Isa::current(), None);
    while let Some(argument) = parser.next().map_err(|error| error.to_string())? {
        match argument {
            Short('h') | Long("help") => return Ok(Parsed::Help),
            Short('V') | Long("version") => return Ok(Parsed::Version),
            Long("model") => model = Some(PathBuf::from(value(&mut parser)?)),
            Long("top") => top = self::top(&text(&mut parser)?).map_err(|error| format!("--top: {error}"))?,
            Long("max-pixels") => max_pixels = pixel_count(&text(&mut parser)?)?,
            Long("threads") => threads = thread_count(&text(&mut parser)?)?,
            Long("isa") => {
                isa = Isa::named(&text(&mut parser)?).map_err(|error| format!("--isa: {error}"))?;
            }
            Long("precision") => {
                precision =
                    self::precision(&text(&mut parser)?).map_err(|error| format!("--precision: {error}"))?;
            }
            Long("json") => json = true,
            Long("stdio") => stdio = true,
            Long("profile") => profile = true,
            Value(image) => images.push(PathBuf::from(image)),
            other => return Err(other.unexpected().to_string()),
        }
    }
    let model = model.ok_or("--model is missing: the model file")?;
    match (stdio, images.is_empty()) {
        (true, false) => Err("--stdio reads its pictures from requests: give it no IMAGE".to_owned()),
        (false, true) => Err("no IMAGE is given".to_owned()),
        _ if stdio && profile => Err("--profile goes with IMAGE, not with --stdio".to_owned()),
        _ => {
            let args = Args { model, images, stdio, top, json, max_pixels, threads, isa, precision, profile };
            Ok(Parsed::Run(args))
        }
    }
}

fn value(parser: &mut lexopt::Parser) -> Result<OsString, String> {
    parser.value().map_err(|error| error.to_string())
}

fn text(parser: &mut lexopt::Parser) -> Result<String, String> {
    value(parser)?.into_string().map_err(|text| format!("{} is no text", text.display()))
}

fn top(text: &str) -> Result<usize, String> {
    let count = text.parse().ok().filter(|&count| count > 0);
    count.ok_or_else(|| format!("expected a number of classes from 1, got {text}"))
}

/// Below the default or equal to it: what is above it is refused everywhere.
fn pixel_count(text: &str) -> Result<u64, String> {
    let most = Limits::default().pixels;
    let count = text.parse().ok().filter(|count| (1..=most).contains(count));
    count.ok_or_else(|| format!("--max-pixels: expected a number from 1 to {most}, got {text}"))
}

fn thread_count(text: &str) -> Result<usize, String> {
    let count = text.parse().ok().filter(|&count| count <= MAX_THREADS);
    count.ok_or_else(|| format!("--threads: expected a number from 0 to {MAX_THREADS}, got {text}"))
}

/// `None` for `auto`.
pub fn precision(name: &str) -> Result<Option<Precision>, String> {
    match Precision::named(name) {
        None if name != "auto" => Err(format!("expected auto, fp32, bf16 or int8, got {name}")),
        found => Ok(found),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Parsed, String> {
        parse(line.split_whitespace().map(OsString::from))
    }

    fn args(line: &str) -> Args {
        match parsed(line).unwrap() {
            Parsed::Run(args) => args,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn flags_come_in_any_order_and_with_either_sign() {
        let plain = args("--model m.engine a.jpg");
        assert_eq!((plain.top, plain.threads, plain.precision), (5, 0, None));
        assert_eq!(plain.max_pixels, Limits::default().pixels);
        let args =
            args("a.jpg --top=3 --json --model=m.engine --threads 2 --isa portable --precision fp32 -- -b");
        assert_eq!(args.images, [PathBuf::from("a.jpg"), PathBuf::from("-b")]);
        assert_eq!((args.top, args.json, args.threads), (3, true, 2));
        assert_eq!((args.isa, args.precision), (Isa::PORTABLE, Some(Precision::Fp32)));
        assert_eq!(parsed("--model m --help"), Ok(Parsed::Help));
        assert_eq!(parsed("-V"), Ok(Parsed::Version));
    }

    #[test]
    fn what_is_wrong_is_one_sentence() {
        for (line, words) in [
            ("a.jpg", "--model is missing"),
            ("--model m", "no IMAGE"),
            ("--model", "missing argument for option '--model'"),
            ("--model m --stdio a.jpg", "give it no IMAGE"),
            ("--model m --stdio --profile", "--profile goes with IMAGE"),
            ("--model m --top 0 a.jpg", "--top: expected a number of classes from 1, got 0"),
            ("--model m --max-pixels 0 a.jpg", "--max-pixels: expected a number from 1 to 178956970, got 0"),
            ("--model m --threads -1 a.jpg", "--threads: expected a number from 0 to 1024, got -1"),
            ("--model m --isa sse a.jpg", "expected auto, avx512, avx2, neon or portable; this machine has"),
            ("--model m --precision fp8 a.jpg", "expected auto, fp32, bf16 or int8, got fp8"),
            ("--model m --modell a.jpg", "invalid option '--modell'"),
        ] {
            let message = parsed(line).unwrap_err();
            assert!(message.contains(words) && !message.contains('\n'), "{line}: {message}");
        }
    }
}
