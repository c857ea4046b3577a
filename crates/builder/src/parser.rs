//! The text of a Dockerfile to instructions. Source: Dockerfile reference, "Format" and each instruction's section.

use crate::Error;
use crate::expand::split_words;

/// One instruction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Step {
    /// The line that it starts on, from one.
    pub(crate) line: usize,
    /// As written, continuation lines joined: what the build prints.
    pub(crate) text: String,
    pub(crate) instruction: Instruction,
}

/// A parsed Dockerfile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Dockerfile {
    /// The escape character: backslash, or the backtick where a directive says so.
    pub(crate) escape: char,
    pub(crate) steps: Vec<Step>,
}

/// What an instruction says, before variables are replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Instruction {
    From {
        image: String,
        platform: Option<String>,
        name: Option<String>,
    },
    Run(Command),
    Cmd(Command),
    Entrypoint(Command),
    Env(Vec<(String, String)>),
    Arg(Vec<(String, Option<String>)>),
    Label(Vec<(String, String)>),
    Expose(Vec<String>),
    Volume(Vec<String>),
    User(String),
    Workdir(String),
    Shell(Vec<String>),
    StopSignal(String),
    Healthcheck(Healthcheck),
    /// The trigger as written, and what it means.
    Onbuild {
        text: String,
        trigger: Box<Instruction>,
    },
    Maintainer(String),
    Copy(Transfer),
    Add(Transfer),
}

/// A command in one of its two forms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Command {
    /// Run by the shell.
    Shell(String),
    /// Run as it is.
    Exec(Vec<String>),
}

/// COPY and ADD.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Transfer {
    /// A stage or an image, in place of the context.
    pub(crate) from: Option<String>,
    pub(crate) chown: Option<String>,
    pub(crate) chmod: Option<String>,
    pub(crate) sources: Vec<String>,
    pub(crate) documents: Vec<Document>,
    pub(crate) destination: String,
}

/// A file written in the Dockerfile itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Document {
    pub(crate) name: String,
    pub(crate) content: String,
    /// Variables in it are replaced, unless its name was quoted.
    pub(crate) expands: bool,
}

/// HEALTHCHECK. Durations are as written.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Healthcheck {
    /// `None` stands for `NONE`.
    pub(crate) command: Option<Command>,
    pub(crate) flags: Vec<(String, String)>,
}

/// Parses a whole Dockerfile.
pub(crate) fn parse(text: &str) -> Result<Dockerfile, Error> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let escape = escape_directive(text)?;
    let mut steps = Vec::new();
    let mut lines = text.lines().enumerate().map(|(number, line)| (number + 1, line));
    while let Some((number, line)) = lines.next() {
        if line.trim().is_empty() || is_comment(line) {
            continue;
        }
        let logical = join_lines(line, escape, &mut lines);
        let fail = |message: String| Error::Parse { line: number, message };
        let documents = read_documents(&logical, escape, &mut lines).map_err(fail)?;
        let instruction = parse_instruction(&logical, escape, documents).map_err(fail)?;
        steps.push(Step { line: number, text: logical.trim().to_owned(), instruction });
    }
    if steps.is_empty() {
        return Err(Error::invalid("the Dockerfile (Dockerfile) cannot be empty"));
    }
    Ok(Dockerfile { escape, steps })
}

/// Parses one instruction on its own: that of an ONBUILD trigger.
pub(crate) fn parse_step(text: &str, escape: char) -> Result<Step, Error> {
    let instruction = parse_instruction(text, escape, Vec::new())
        .map_err(|message| Error::invalid(format!("ONBUILD trigger {text:?}: {message}")))?;
    Ok(Step { line: 0, text: text.to_owned(), instruction })
}

fn is_comment(line: &str) -> bool {
    line.trim_start().starts_with('#')
}

/// `# escape=` among the directives at the very top; other directives choose a front end and mean nothing here.
fn escape_directive(text: &str) -> Result<char, Error> {
    for (number, line) in text.lines().enumerate() {
        let Some((key, value)) = line.trim().strip_prefix('#').and_then(|rest| rest.split_once('=')) else {
            break;
        };
        let key = key.trim().to_ascii_lowercase();
        if !key.bytes().all(|byte| byte.is_ascii_alphanumeric()) || key.is_empty() {
            break;
        }
        if key == "escape" {
            return match value.trim() {
                "\\" => Ok('\\'),
                "`" => Ok('`'),
                other => Err(Error::Parse {
                    line: number + 1,
                    message: format!("invalid escape character {other:?}: use \\ or `"),
                }),
            };
        }
    }
    Ok('\\')
}

/// Joins a line with those that continue it. Comments and empty lines between them do not count.
fn join_lines<'a>(first: &str, escape: char, lines: &mut impl Iterator<Item = (usize, &'a str)>) -> String {
    let mut logical = String::new();
    let mut line = first;
    loop {
        match line.trim_end().strip_suffix(escape) {
            None => {
                logical.push_str(line);
                return logical;
            }
            Some(continued) => logical.push_str(continued),
        }
        loop {
            match lines.next() {
                None => return logical,
                Some((_, next)) if next.trim().is_empty() || is_comment(next) => {}
                Some((_, next)) => {
                    line = next;
                    break;
                }
            }
        }
    }
}

/// Reads the here-documents that an instruction announces with `<<NAME`.
fn read_documents<'a>(
    logical: &str,
    escape: char,
    lines: &mut impl Iterator<Item = (usize, &'a str)>,
) -> Result<Vec<Document>, String> {
    let keyword = logical.split_whitespace().next().unwrap_or_default().to_ascii_uppercase();
    if !matches!(keyword.as_str(), "RUN" | "COPY" | "ADD") {
        return Ok(Vec::new());
    }
    let mut documents = Vec::new();
    for word in split_words(logical, escape) {
        let Some((name, strips, expands)) = document_mark(&word) else { continue };
        let mut content = String::new();
        loop {
            let (_, line) = lines.next().ok_or_else(|| format!("unterminated heredoc {name:?}"))?;
            let line = if strips { line.trim_start_matches('\t') } else { line };
            if line == name {
                break;
            }
            content.push_str(line);
            content.push('\n');
        }
        documents.push(Document { name, content, expands });
    }
    Ok(documents)
}

/// The name in `<<NAME`, whether leading tabs go (`<<-`), and whether variables are replaced (not if it is quoted).
fn document_mark(word: &str) -> Option<(String, bool, bool)> {
    let rest = word.trim_start_matches(|c: char| c.is_ascii_digit()).strip_prefix("<<")?;
    let (rest, strips) = rest.strip_prefix('-').map_or((rest, false), |rest| (rest, true));
    let bare = rest.trim_matches(|c| c == '"' || c == '\'');
    let named =
        !bare.is_empty() && bare.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'));
    named.then(|| (bare.to_owned(), strips, bare.len() == rest.len()))
}

fn parse_instruction(logical: &str, escape: char, documents: Vec<Document>) -> Result<Instruction, String> {
    let logical = logical.trim();
    let (keyword, rest) = logical.split_once(char::is_whitespace).unwrap_or((logical, ""));
    let rest = rest.trim();
    let keyword = keyword.to_ascii_uppercase();
    if rest.is_empty() {
        return Err(format!("{keyword} requires at least one argument"));
    }
    match keyword.as_str() {
        "FROM" => parse_from(rest),
        "RUN" => parse_run(rest, documents).map(Instruction::Run),
        "CMD" => Ok(Instruction::Cmd(command(rest))),
        "ENTRYPOINT" => Ok(Instruction::Entrypoint(command(rest))),
        "ENV" => pairs(rest, escape, "ENV").map(Instruction::Env),
        "LABEL" => pairs(rest, escape, "LABEL").map(Instruction::Label),
        "ARG" => {
            Ok(Instruction::Arg(split_words(rest, escape).into_iter().map(|word| argument(&word)).collect()))
        }
        "EXPOSE" => Ok(Instruction::Expose(split_words(rest, escape))),
        "VOLUME" => Ok(Instruction::Volume(json_list(rest).unwrap_or_else(|| split_words(rest, escape)))),
        "USER" => Ok(Instruction::User(rest.to_owned())),
        "WORKDIR" => Ok(Instruction::Workdir(rest.to_owned())),
        "SHELL" => match json_list(rest) {
            Some(list) if !list.is_empty() => Ok(Instruction::Shell(list)),
            _ => Err("SHELL requires the arguments to be in JSON form".to_owned()),
        },
        "STOPSIGNAL" => Ok(Instruction::StopSignal(rest.to_owned())),
        "HEALTHCHECK" => parse_healthcheck(rest).map(Instruction::Healthcheck),
        "ONBUILD" => parse_onbuild(rest, escape),
        "MAINTAINER" => Ok(Instruction::Maintainer(rest.to_owned())),
        "COPY" => parse_transfer(rest, escape, documents, "COPY").map(Instruction::Copy),
        "ADD" => parse_transfer(rest, escape, documents, "ADD").map(Instruction::Add),
        other => Err(format!("unknown instruction: {other}")),
    }
}

fn parse_from(rest: &str) -> Result<Instruction, String> {
    let (flags, rest) = flags(rest);
    let platform = only_flags("FROM", &flags, &["platform"])?.remove(0);
    let words: Vec<&str> = rest.split_whitespace().collect();
    match words.as_slice() {
        [image] => Ok(Instruction::From { image: (*image).to_owned(), platform, name: None }),
        [image, keyword, name] if keyword.eq_ignore_ascii_case("as") => {
            let name = name.to_ascii_lowercase();
            let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
            if !name.starts_with(|c: char| c.is_ascii_alphabetic()) || !name.chars().all(fits) {
                return Err(format!("invalid name for build stage: {name:?}"));
            }
            Ok(Instruction::From { image: (*image).to_owned(), platform, name: Some(name) })
        }
        _ => Err("FROM requires either one argument, or three: FROM <source> [as <name>]".to_owned()),
    }
}

fn parse_run(rest: &str, documents: Vec<Document>) -> Result<Command, String> {
    let (flags, rest) = flags(rest);
    if let Some((name, _)) = flags.iter().find(|(name, value)| !(name == "network" && value == "default")) {
        return Err(format!("RUN --{name} is not supported: remove the option"));
    }
    let [first, ..] = documents.as_slice() else { return Ok(command(rest)) };
    if document_mark(rest).is_some() && documents.len() == 1 {
        return Ok(Command::Shell(first.content.trim_end_matches('\n').to_owned()));
    }
    // The shell reads the documents itself.
    let mut script = rest.to_owned();
    for document in &documents {
        script.push_str(&format!("\n{}{}", document.content, document.name));
    }
    Ok(Command::Shell(script))
}

fn parse_onbuild(rest: &str, escape: char) -> Result<Instruction, String> {
    let keyword = rest.split_whitespace().next().unwrap_or_default().to_ascii_uppercase();
    if matches!(keyword.as_str(), "ONBUILD" | "FROM" | "MAINTAINER") {
        return Err(format!("{keyword} isn't allowed as an ONBUILD trigger"));
    }
    let trigger = Box::new(parse_instruction(rest, escape, Vec::new())?);
    Ok(Instruction::Onbuild { text: rest.to_owned(), trigger })
}

fn parse_healthcheck(rest: &str) -> Result<Healthcheck, String> {
    let (flags, rest) = flags(rest);
    let known = ["interval", "timeout", "start-period", "start-interval", "retries"];
    if let Some((name, _)) = flags.iter().find(|(name, _)| !known.contains(&name.as_str())) {
        return Err(format!("unknown flag: {name}"));
    }
    let (kind, rest) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    match (kind.to_ascii_uppercase().as_str(), rest.trim()) {
        ("NONE", "") if flags.is_empty() => Ok(Healthcheck::default()),
        ("CMD", rest) if !rest.is_empty() => Ok(Healthcheck { command: Some(command(rest)), flags }),
        ("CMD", _) => Err("missing command after HEALTHCHECK CMD".to_owned()),
        (other, _) => Err(format!("unknown type {other:?} in HEALTHCHECK (try CMD or NONE)")),
    }
}

fn parse_transfer(
    rest: &str,
    escape: char,
    documents: Vec<Document>,
    keyword: &str,
) -> Result<Transfer, String> {
    let (flags, rest) = flags(rest);
    let known: &[&str] = if keyword == "COPY" { &["chown", "chmod", "from"] } else { &["chown", "chmod"] };
    let mut found = only_flags(keyword, &flags, known)?.into_iter();
    let (chown, chmod, from) = (found.next().flatten(), found.next().flatten(), found.next().flatten());
    let mut sources = json_list(rest).unwrap_or_else(|| split_words(rest, escape));
    let destination = sources.pop().unwrap_or_default();
    if !documents.is_empty() {
        sources.retain(|word| document_mark(word).is_none());
    }
    if sources.is_empty() && documents.is_empty() {
        return Err(format!("{keyword} requires at least two arguments"));
    }
    Ok(Transfer { from, chown, chmod, sources, documents, destination })
}

/// The `--name=value` words at the start.
fn flags(mut rest: &str) -> (Vec<(String, String)>, &str) {
    let mut found = Vec::new();
    while let Some(flag) = rest.strip_prefix("--") {
        let end = flag.find(char::is_whitespace).unwrap_or(flag.len());
        let (name, value) = flag[..end].split_once('=').unwrap_or((&flag[..end], ""));
        found.push((name.to_owned(), value.to_owned()));
        rest = flag[end..].trim_start();
    }
    (found, rest)
}

/// The values of the flags that an instruction knows, in the order of `known`.
fn only_flags(
    keyword: &str,
    flags: &[(String, String)],
    known: &[&str],
) -> Result<Vec<Option<String>>, String> {
    if let Some((name, _)) = flags.iter().find(|(name, _)| !known.contains(&name.as_str())) {
        return Err(format!("{keyword} --{name} is not supported: remove the option"));
    }
    let value =
        |wanted: &&str| flags.iter().find(|(name, _)| name == *wanted).map(|(_, value)| value.clone());
    Ok(known.iter().map(value).collect())
}

/// A JSON list of strings is the exec form; everything else is for the shell.
fn command(rest: &str) -> Command {
    json_list(rest).map_or_else(|| Command::Shell(rest.to_owned()), Command::Exec)
}

fn json_list(rest: &str) -> Option<Vec<String>> {
    rest.starts_with('[').then(|| serde_json::from_str(rest).ok()).flatten()
}

/// `NAME` or `NAME=value`.
fn argument(word: &str) -> (String, Option<String>) {
    match word.split_once('=') {
        Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
        None => (word.to_owned(), None),
    }
}

/// `key=value …`, or the old form `key the rest of the line`.
fn pairs(rest: &str, escape: char, keyword: &str) -> Result<Vec<(String, String)>, String> {
    let words = split_words(rest, escape);
    let first = words.first().map_or("", String::as_str);
    if !first.contains('=') {
        return match rest.split_once(char::is_whitespace) {
            Some((key, value)) => Ok(vec![(key.to_owned(), value.trim().to_owned())]),
            None => Err(format!("{keyword} must have two arguments")),
        };
    }
    let mut found = Vec::new();
    for word in words {
        match word.split_once('=') {
            Some(("", _)) => return Err(format!("{keyword} names can not be blank")),
            Some((key, value)) => found.push((key.to_owned(), value.to_owned())),
            None => return Err(format!("can't find = in {word:?}. Must be of the form: name=value")),
        }
    }
    Ok(found)
}

#[cfg(test)]
#[path = "parser_tests.rs"]
mod tests;
