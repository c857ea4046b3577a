//! Dockerfiles as people write them.

use super::*;

fn one(text: &str) -> Instruction {
    let mut file = parse(text).unwrap();
    assert_eq!(file.steps.len(), 1, "{text}");
    file.steps.remove(0).instruction
}

fn strings(list: &[&str]) -> Vec<String> {
    list.iter().map(|text| (*text).to_owned()).collect()
}

fn pair(key: &str, value: &str) -> (String, String) {
    (key.to_owned(), value.to_owned())
}

#[test]
fn lines_continue_over_comments_and_blanks() {
    let file =
        parse("# comment\nFROM a\n\nRUN one \\\n  # inside\n\n  && two \\ \n  && three\ncmd x\n").unwrap();
    let texts: Vec<_> = file.steps.iter().map(|step| (step.line, step.text.as_str())).collect();
    assert_eq!(texts, [(2, "FROM a"), (4, "RUN one   && two   && three"), (9, "cmd x")]);
    assert_eq!(file.steps[2].instruction, Instruction::Cmd(Command::Shell("x".to_owned())));
}

#[test]
fn the_escape_can_be_a_backtick() {
    let file = parse("# syntax=docker/dockerfile:1\n# escape=`\nFROM a\nRUN dir c:\\ `\n  x\n").unwrap();
    assert_eq!(file.escape, '`');
    assert_eq!(file.steps[1].text, "RUN dir c:\\   x");
    assert!(parse("# escape=x\nFROM a").is_err());
    assert_eq!(parse("# just a comment\n# escape=`\nFROM a").unwrap().escape, '\\');
}

#[test]
fn stages_have_names_and_platforms() {
    let from = one("FROM --platform=$BUILDPLATFORM golang:1.22 AS Build");
    let expected = Instruction::From {
        image: "golang:1.22".to_owned(),
        platform: Some("$BUILDPLATFORM".to_owned()),
        name: Some("build".to_owned()),
    };
    assert_eq!(from, expected);
    for bad in ["FROM", "FROM a b", "FROM a as 1x", "FROM --x=1 a"] {
        assert!(parse(bad).is_err(), "{bad}");
    }
}

#[test]
fn commands_have_two_forms() {
    assert_eq!(
        one(r#"CMD ["nginx", "-g", "daemon off;"]"#),
        Instruction::Cmd(Command::Exec(strings(&["nginx", "-g", "daemon off;"])))
    );
    assert_eq!(
        one("ENTRYPOINT exec top -b"),
        Instruction::Entrypoint(Command::Shell("exec top -b".to_owned()))
    );
    assert_eq!(one("CMD [not json]"), Instruction::Cmd(Command::Shell("[not json]".to_owned())));
    assert_eq!(one(r#"SHELL ["/bin/bash", "-c"]"#), Instruction::Shell(strings(&["/bin/bash", "-c"])));
    assert!(parse("SHELL bash").is_err());
}

#[test]
fn pairs_have_an_old_form() {
    assert_eq!(one("ENV A=b C=\"d e\""), Instruction::Env(vec![pair("A", "b"), pair("C", "\"d e\"")]));
    assert_eq!(
        one("ENV SA_LOGIC_API_URL http://localhost:5000"),
        Instruction::Env(vec![pair("SA_LOGIC_API_URL", "http://localhost:5000")])
    );
    assert_eq!(one("LABEL a.b=c"), Instruction::Label(vec![pair("a.b", "c")]));
    assert!(parse("ENV A").is_err());
    assert!(parse("ENV A=b c").is_err());
    assert!(parse("ENV =b").is_err());
    let arg = Instruction::Arg(vec![("A".to_owned(), Some("1".to_owned())), ("B".to_owned(), None)]);
    assert_eq!(one("ARG A=1 B"), arg);
}

#[test]
fn copies_have_flags_and_json() {
    let expected = Transfer {
        from: Some("build".to_owned()),
        chown: Some("1:2".to_owned()),
        chmod: Some("0644".to_owned()),
        sources: strings(&["a", "b"]),
        destination: "/c/".to_owned(),
        ..Transfer::default()
    };
    assert_eq!(one("COPY --from=build --chown=1:2 --chmod=0644 a b /c/"), Instruction::Copy(expected));
    let spaced =
        Transfer { sources: strings(&["a b"]), destination: "c d".to_owned(), ..Transfer::default() };
    assert_eq!(one(r#"ADD ["a b", "c d"]"#), Instruction::Add(spaced));
    assert!(parse("ADD --from=x a b").is_err());
    assert!(parse("COPY a").is_err());
    assert!(parse("COPY --link a b").is_err());
}

#[test]
fn documents_are_read() {
    assert_eq!(
        one("RUN <<EOF\necho a\n# kept\n\necho b\nEOF\n"),
        Instruction::Run(Command::Shell("echo a\n# kept\n\necho b".to_owned()))
    );
    assert_eq!(
        one("RUN cat <<-X > /f\n\thello\n\tX\n"),
        Instruction::Run(Command::Shell("cat <<-X > /f\nhello\nX".to_owned()))
    );
    let Instruction::Copy(transfer) = one("COPY <<\"a.txt\" b <<c /d/\n$A\na.txt\nC\nc\n") else {
        panic!("a copy")
    };
    assert_eq!(transfer.sources, ["b"]);
    let document = |name: &str, content: &str, expands| Document {
        name: name.to_owned(),
        content: content.to_owned(),
        expands,
    };
    assert_eq!(transfer.documents, [document("a.txt", "$A\n", false), document("c", "C\n", true)]);
    assert!(parse("RUN <<EOF\nnever ends").is_err());
}

#[test]
fn health_and_triggers() {
    let Instruction::Healthcheck(check) = one("HEALTHCHECK --interval=5s --retries=3 CMD curl -f http://x")
    else {
        panic!()
    };
    assert_eq!(check.flags, [pair("interval", "5s"), pair("retries", "3")]);
    assert_eq!(one("HEALTHCHECK NONE"), Instruction::Healthcheck(Healthcheck::default()));
    assert!(parse("HEALTHCHECK CMD").is_err());
    assert!(parse("HEALTHCHECK --x=1 CMD y").is_err());
    let trigger = Box::new(one("RUN make"));
    assert_eq!(one("ONBUILD RUN make"), Instruction::Onbuild { text: "RUN make".to_owned(), trigger });
    assert!(parse("ONBUILD FROM x").is_err());
    assert!(parse("ONBUILD NOPE x").is_err());
}

#[test]
fn errors_name_their_line() {
    let error = parse("FROM a\n\nNOPE b\n").unwrap_err();
    assert_eq!(error.to_string(), "dockerfile parse error on line 3: unknown instruction: NOPE");
    assert!(parse("").is_err());
    assert!(parse("FROM a\nRUN --mount=type=cache,target=/x y").unwrap_err().to_string().contains("--mount"));
}
