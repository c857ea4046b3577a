//! Expressions that mean harm: each has to pay for what it does, in cost that is counted here, before it does it.

use serde_json::{Value, json};

use super::*;
use crate::custom::Props;

/// A budget of so much work, whatever it costs.
fn working(most: u64) -> Budget {
    Budget { left: u64::MAX, work: most, ..Budget::default() }
}

/// What those may spend that are to spend all they may.
const LITTLE: u64 = 100_000;

/// The value of an expression, and what it cost of a call's budget.
fn spent<'v>(program: &'v Program, variables: &Variables<'v>) -> (Result<Val<'v>, CelError>, u64) {
    spent_of(CALL_COST_MAX, program, variables)
}

fn spent_of<'v>(
    most: u64,
    program: &'v Program,
    variables: &Variables<'v>,
) -> (Result<Val<'v>, CelError>, u64) {
    let mut budget = working(most);
    let value = budget.call(|budget| program.run(variables, budget));
    (value, most - budget.work)
}

fn compile(source: &str) -> Program {
    Program::compile(source, &["self", "variables"]).unwrap_or_else(|error| panic!("{error}"))
}

/// What an expression costs that has a value.
fn cost(source: &str, object: &Value) -> u64 {
    let program = compile(source);
    let (value, spent) = spent(&program, &Variables::default().json("self", object));
    assert!(value.is_ok(), "{source}: {value:?}");
    spent
}

/// How an expression ends that has none.
fn end(source: &str, object: &Value) -> CelError {
    let program = compile(source);
    let (value, _) = spent_of(LITTLE, &program, &Variables::default().json("self", object));
    value.map(|value| format!("{value:?}").len()).expect_err(source)
}

fn composition(variables: impl IntoIterator<Item = (String, String)>) -> Composition {
    let mut composition = Composition::default();
    for (name, source) in variables {
        composition.add(&name, Ok(compile(&source)));
    }
    composition
}

/// Variables of which each has the one before it twice: 2^`levels` items in so many lists.
fn doubled(levels: usize, name: &str) -> Vec<(String, String)> {
    let source = |level: usize| match level {
        0 => "[1]".to_owned(),
        level => format!("[variables.{name}{0}, variables.{name}{0}]", level - 1),
    };
    (0..=levels).map(|level| (format!("{name}{level}"), source(level))).collect()
}

#[test]
fn texts_stay_where_they_are() {
    let object = json!({"t": "x".repeat(1 << 20), "list": ["y".repeat(1 << 20)]});
    for (source, place) in [("self.t", &object["t"]), ("self.list[0]", &object["list"][0])] {
        let program = compile(source);
        let (value, spent) = spent(&program, &Variables::default().json("self", &object));
        let Ok(Val::Text(Text::Given(text))) = value else { panic!("{value:?}") };
        assert!(std::ptr::eq(text, place.as_str().unwrap()) && spent < 10, "{spent}");
    }
    let program = compile("'literal'");
    let (value, _) = spent(&program, &Variables::default());
    assert!(matches!(value, Ok(Val::Text(Text::Given("literal")))));
    assert!(cost("self.list.all(x, x != '')", &object) < 20);
}

#[test]
fn what_a_format_decodes_is_paid_each_time() {
    let schema = json!({"type": "object", "properties": {"b": {"type": "string", "format": "byte"}}});
    let schema = Props::read(&schema).unwrap();
    let object = json!({"b": "AAAA".repeat(10_000)});
    let program = compile("self.b == self.b && [1, 2].all(x, size(self.b) > 0)");
    let variables = Variables::default().with("self", Val::of_json(&object, Some(&schema)));
    let (value, spent) = spent(&program, &variables);
    assert!(matches!(value, Ok(Val::Bool(true))) && spent > 4 * 3_000, "{spent}");
}

#[test]
fn a_value_takes_no_more_memory_than_was_paid_for() {
    assert!(size_of::<Val<'_>>() as u64 <= 8 * ITEM_COST);
    for hungry in [
        "lists.range(1000000000)",
        "lists.range(9223372036854775807)",
        "self.n.map(a, self.n.map(b, self.n))",
        "self.n.map(a, self.n + self.n + self.n)",
        "self.n.map(a, self.n.reverse())",
        "self.n.map(a, self.n.slice(0, 1000))",
        "self.n.map(a, self.n.map(b, b).flatten())",
        "self.n.map(a, self.text.split(''))",
        "self.n.map(a, self.text.findAll('.'))",
        "self.n.map(a, self.text + self.text)",
        "self.n.map(a, self.text.reverse())",
        "self.n.map(a, bytes(self.text))",
        "self.n.map(a, base64.encode(bytes(self.text)))",
        "self.n.map(a, strings.quote(self.text))",
        "self.n.map(a, '%s%s%s'.format([self.text, self.text, self.n]))",
        "self.n.map(a, [self.text, self.text, self.text].join(self.text))",
        "self.n.map(a, self.text.replace('x', self.text))",
        "self.n.map(a, self.text.replace('', self.text))",
        "self.n.map(a, self.n.transformMap(i, v, i))",
        "self.n.map(a, self.n.transformMapEntry(i, v, {i: v}))",
        "self.n.map(a, self.n.sort())",
        "self.n.map(a, self.n.distinct())",
    ] {
        let object = json!({"n": (0..1_000).collect::<Vec<i32>>(), "text": "x".repeat(20_000)});
        assert_eq!(end(hungry, &object), CelError::Cost, "{hungry}");
    }
}

#[test]
fn work_is_paid_by_what_it_touches() {
    let numbers: Vec<usize> = (0..10_000).collect();
    let texts: Vec<String> = (0..100).map(|number| format!("{}{number}", "x".repeat(10_000))).collect();
    let object =
        json!({"n": numbers, "t": texts, "a": "a".repeat(100_000), "one": numbers, "m": {"k": numbers}});
    for (source, least) in [
        ("cel.bind(l, self.n.map(x, x), l.reverse().size() + l.slice(0, 10000).size())", 90_000),
        ("cel.bind(l, self.n.map(x, x), l.isSorted() && l.max() > l.min() && l.sum() > 0)", 80_000),
        ("cel.bind(l, self.n.map(x, x), l.indexOf(9999) == 9999 && !l.includes(-1) && !(-1 in l))", 80_000),
        ("self.n == self.one && self.m != {'k': self.one}", 10_000),
        ("self.t.isSorted()", 90_000),
        ("self.t.max() != self.t.min()", 190_000),
        ("self.t.sort().size() == 100", 600_000),
        ("self.t[0] < self.t[1] || self.t[0] > self.t[1]", 1_000),
        ("self.a.indexOf('b') < 0 && self.a.lastIndexOf('b') < 0 && !self.a.contains('b')", 30_000),
        ("self.a.indexOf(self.a.substring(1) + 'b') == -1", 40_000),
        (
            "self.a.size() > 0 && self.a.lowerAscii() != '' && self.a.trim() != '' && self.a.charAt(9) == 'a'",
            40_000,
        ),
        ("self.a.matches('^a*$')", 10_000),
        ("self.a.find('a+') != '' && self.a.findAll('a+').size() == 1", 40_000),
        ("self.a.split('b').size() == 1", 20_000),
        (
            "isURL('http://x/' + self.a) && isQuantity(self.a) || isIP(self.a) || isSemver(self.a, true)",
            40_000,
        ),
        ("url('http://x/' + self.a.substring(0, 50000)).getHost() == 'x'", 30_000),
        (
            "string(bytes(self.a)) == self.a && int('1' + self.a.substring(99999).replace('a', '')) == 1",
            30_000,
        ),
        ("timestamp('2026-01-01T00:00:00Z').getHours('Europe/Nowhere') == 1 || true", 50),
        ("'%s'.format([self.n]).size() > 0", 15_000),
        ("sets.contains(self.n, [9999])", 10_000),
        ("[self.t, self.t].flatten().size() == 200", 400),
        ("cel.bind(l, self.n.map(x, x), math.greatest(l) + math.least(l)) == 9999", 55_000),
        ("strings.quote(self.a).size() > 0", 20_000),
        ("!format.dns1123Label().validate(self.a).value().isSorted() || true", 10_000),
        ("jsonpatch.escapeKey(self.a) == self.a", 10_000),
    ] {
        let spent = cost(source, &object);
        assert!(spent >= least, "{source}: {spent}");
    }
}

#[test]
fn what_is_shared_is_paid_as_often_as_it_is_seen() {
    let composition = composition(doubled(40, "a").into_iter().chain(doubled(40, "b")));
    for (source, seen) in [
        ("variables.a13 == variables.b13", 1 << 13),
        ("variables.a13.flatten(13).size() == 8192", 1 << 13),
        ("'%s'.format([variables.a13]).size() > 0", 1 << 13),
        ("variables.a40 == variables.b40", LITTLE),
        ("variables.a40.flatten(40).size() > 0", LITTLE),
        ("'%s'.format([variables.a40]).size() > 0", LITTLE),
        ("variables.a40 in [variables.b40]", LITTLE),
        ("sets.equivalent(variables.a40, variables.b40)", LITTLE),
        ("[variables.a40, variables.b40, variables.a40].distinct().size() == 1", LITTLE),
    ] {
        let program = compile(source);
        let (value, spent) = spent_of(LITTLE, &program, &Variables::default().composed(&composition));
        assert!(spent >= seen, "{source}: {spent}");
        assert_eq!(value.err(), (seen == LITTLE).then_some(CelError::Cost), "{source}");
    }
}

#[test]
fn what_becomes_json_is_paid() {
    let composition = composition(doubled(40, "a"));
    let object = json!({"long": "x".repeat(100_000), "list": [[1, 2], {"a": null}]});
    let made = |source: &str| {
        let program = compile(source);
        let variables = Variables::default().json("self", &object).composed(&composition).patching();
        let (value, _) = spent(&program, &variables);
        let value = value.unwrap();
        let mut budget = working(CALL_COST_MAX);
        let named = value.check_made("Object", &mut budget);
        let json = value.to_json(&mut budget);
        (named.and(json), CALL_COST_MAX - budget.work)
    };
    let (json, spent) = made("Object{spec: Object.spec{a: [self.list], b: {'k': self.long}, c: b'abc'}}");
    assert!(spent > 10_000, "{spent}");
    let wanted =
        json!({"spec": {"a": [[[1, 2], {"a": null}]], "b": {"k": "x".repeat(100_000)}, "c": "YWJj"}});
    assert_eq!(json, Ok(wanted));
    assert_eq!(made("Object{a: variables.a40}").0, Err(CelError::Cost));
    assert_eq!(made("Object{a: lists.range(200).map(i, self.long)}").0, Err(CelError::Cost));
}

#[test]
fn values_nest_no_deeper_than_a_stack_allows() {
    let deeper = |wrap: fn(String) -> String| {
        let source = move |level: usize| match level {
            0 => "1".to_owned(),
            level => wrap(format!("variables.v{}", level - 1)),
        };
        // Each variable is evaluated where the one before it is known already.
        let all: Vec<String> = (0..150).map(|level| format!("variables.v{level} != null")).collect();
        (
            composition((0..150).map(move |level| (format!("v{level}"), source(level)))),
            compile(&all.join(" && ")),
        )
    };
    for wrap in [
        (|inner| format!("[{inner}]")) as fn(String) -> String,
        |inner| format!("{{'a': {inner}}}"),
        |inner| format!("optional.of({inner})"),
        |inner| format!("Object{{a: {inner}}}"),
        |inner| format!("[1].map(x, {inner})"),
        |inner| format!("[{inner}] + [1]"),
        |inner| format!("[1].transformMap(k, v, {inner})"),
        |inner| format!("[{{'a': [{inner}].first()}}].filter(x, true)"),
    ] {
        let (composition, program) = deeper(wrap);
        let variables = Variables::default().composed(&composition).patching();
        let (value, _) = spent(&program, &variables);
        let Err(CelError::Fault(error)) = value else { panic!("{value:?}") };
        assert!(error.contains("values may be nested 100 levels deep at most"), "{error}");
    }
}

/// A stack smaller than a server's threads have, so that there is room for what calls an evaluation.
#[test]
fn evaluations_fit_into_a_stack() {
    let work = || {
        let macros = |inner: &str| {
            let (open, close) = ("[1].all(x, ".repeat(22), ")".repeat(22));
            format!("{open}{inner}{close}")
        };
        let source = |level: usize| match level {
            0 => "true".to_owned(),
            level => macros(&format!("variables.v{}", level - 1)),
        };
        let composition = composition((0..40).map(|level| (format!("v{level}"), source(level))));
        let program = compile("variables.v39");
        let (value, _) = spent(&program, &Variables::default().composed(&composition));
        let Err(CelError::Fault(error)) = value else { panic!("{value:?}") };
        assert!(error.contains("too deeply"), "{error}");
        for part in ["(", "[", "{1:", "!(", "-(", "1?1:", "a(", "[].map(x,", "a.b(", "a[", "1+(", "Object{a:"]
        {
            let _ = Program::compile(&part.repeat(49), &[]);
            let close: String = part
                .chars()
                .rev()
                .filter_map(|letter| match letter {
                    '(' => Some(')'),
                    '[' => Some(']'),
                    '{' => Some('}'),
                    _ => None,
                })
                .collect();
            let whole = format!("{}1{}", part.repeat(49), close.repeat(49));
            let _ = Environment::default().with("a", Type::Dyn).patching().check(&whole);
            if let Ok(program) = Program::compile(&whole, &["a"]) {
                let _ = spent(&program, &Variables::default().patching());
            }
        }
    };
    #[allow(clippy::disallowed_methods, reason = "joined at once; only its stack is wanted")]
    std::thread::Builder::new().stack_size(1 << 20).spawn(work).unwrap().join().unwrap();
}

#[test]
fn types_stay_small() {
    let mut environment = Environment::default().with("x", Type::Dyn);
    for name in ["a", "b", "c"] {
        for level in 0..200 {
            let before = match level {
                0 => "[1]".to_owned(),
                level => format!("variables.{name}{}", level - 1),
            };
            let source = match name {
                "a" => format!("{{{before}: {before}}}"),
                "b" => format!("[{before}]"),
                _ => format!("[{{'a': {before}}}].map(x, optional.of({before}))"),
            };
            let _ = environment.compose(&format!("{name}{level}"), &source);
        }
    }
    for name in ["a", "b", "c"] {
        let ty = environment.check(&format!("[variables.{name}199, variables.{name}199]")).unwrap();
        assert!(ty.to_string().len() < 2_000);
    }
    let binds: String =
        (0..40).map(|level| format!("cel.bind(v{}, {{v{level}: v{level}}}, ", level + 1)).collect();
    let source = format!("cel.bind(v0, 1, {binds}v40{}", ")".repeat(41));
    assert!(environment.clone().binding().check(&source).unwrap().to_string().len() < 2_000);
    assert_eq!(environment.check("{[1]: 2}").unwrap().to_string(), "map(dyn, int)");
    assert_eq!(environment.check("{1: [2]}").unwrap().to_string(), "map(int, list(int))");
}

#[test]
fn patterns_are_paid_by_their_size() {
    let object = json!({"t": "word ".repeat(100), "n": (0..1_000).collect::<Vec<i32>>()});
    let simple = cost("self.t.matches('^[a-z ]+$')", &object);
    assert!(simple < 1_000, "{simple}");
    // The second time it is there.
    let twice = cost("self.t.matches('^[a-z ]+$') && self.t.matches('^[a-z ]+$')", &object);
    assert!(twice < 2 * simple, "{twice}");
    let large = cost(r"self.t.matches('(\\pL{3}){9}x')", &object);
    assert!(large > 10_000, "{large}");
    // Patterns that are made are compiled each, and paid each; what is large takes long to run.
    for hostile in [
        "self.n.all(x, !self.t.matches('[a-z]{9}' + string(x)))",
        r"self.n.all(x, !self.t.matches('(\\pL{9}){9}' + string(x)))",
        r"self.n.all(x, !self.t.matches('(\\pL{9}){9}'))",
    ] {
        assert_eq!(end(hostile, &object), CelError::Cost, "{hostile}");
    }
    for (source, wanted) in [
        (r"self.t.matches('((\\w{99}){99}){99}')", "invalid repeat count: `{99}`"),
        (r"self.t.matches('(\\pL{99}){9}(\\pL{99}){9}(\\pL{99}){9}(\\pL{99}){9}')", "expression too large"),
        (
            r"self.t.matches('\\pL'.replace('', '\\pL\\pL\\pL\\pL\\pL\\pL').replace('', '\\pL\\pL\\pL\\pL\\pL').replace('', '\\pL\\pL\\pL\\pL\\pL').replace('p', '\\pL\\pL\\pL\\pL\\pL'))",
            "error parsing regexp",
        ),
    ] {
        let CelError::Fault(error) = end(source, &object) else { panic!("{source}") };
        assert!(error.contains(wanted), "{error}");
    }
}

#[test]
fn failures_are_short() {
    let long = "k".repeat(1 << 20);
    let object = json!({"long": long, "m": {}, "list": [1]});
    for source in [
        "self.m[self.long]",
        "self.nothing",
        "ip(self.long)",
        "cidr(self.long)",
        "url(self.long)",
        "duration(self.long)",
        "timestamp('2026-01-01T00:00:00Z').getHours(self.long)",
        "self.long.matches('(' + self.long.substring(0, 9999))",
        "semver(self.long)",
    ] {
        let program = compile(source);
        let (value, _) = spent(&program, &Variables::default().json("self", &object));
        let Err(CelError::Fault(error)) = value else { panic!("{source}: {value:?}") };
        assert!(error.len() < 4_000, "{source}: {}", error.len());
    }
    let mut composition = Composition::default();
    composition.add("wrong", Program::compile(&"+\n".repeat(10_000), &[]));
    composition.add(&"n".repeat(100_000), Ok(compile("self.nothing")));
    for source in ["variables.wrong".to_owned(), format!("variables.{}", "n".repeat(100_000 - 20))] {
        let program = compile(&source);
        let variables = Variables::default().json("self", &object).composed(&composition);
        let (Err(error), _) = spent(&program, &variables) else { panic!("{source}") };
        assert!(error.to_string().len() < 4_000);
    }
}

#[test]
fn what_takes_long_gives_way_and_is_the_same_elsewhere() {
    let object = json!({"n": (0..100).collect::<Vec<i32>>()});
    let (short, long) =
        (compile("self.n.all(x, x >= 0)"), compile("self.n.all(x, self.n.all(y, self.n[x] == x || y > 0))"));
    let pace = Pace::default();
    let paced = || Variables::default().json("self", &object).paced(Some(&pace));
    let mut budget = working(CALL_COST_MAX);
    assert_eq!(short.holds(&paced(), &mut budget), Ok(true));
    let quick = CALL_COST_MAX - budget.work;
    assert!((100..2_000).contains(&quick), "{quick}");
    assert_eq!(long.holds(&paced(), &mut budget), Err(CelError::Long));
    // What is spent is spent, whether it was enough or not.
    let slow = CALL_COST_MAX - budget.work;
    assert!(slow.abs_diff(QUICK_COST_MAX) < 10, "{slow}");
    assert_eq!(short.holds(&paced(), &mut budget), Err(CelError::Long));
    assert_eq!(long.holds(&Variables::default().json("self", &object), &mut budget), Ok(true));
    // Where the budget is the narrower bound, that is what is said.
    let pace = Pace::default();
    let variables = Variables::default().json("self", &object).paced(Some(&pace));
    assert_eq!(long.holds(&variables, &mut Budget::new(100)), Err(CelError::Cost));
}

#[test]
fn a_budget_tells_of_the_work_where_it_costs_little() {
    let object = json!({});
    let variables = Variables::default().json("self", &object);
    // The pattern becomes large, while upstream says that it costs next to nothing.
    let large = compile(r"'a'.matches('\\pL{9}')");
    let mut budget = Budget::new(CALL_COST_MAX);
    assert_eq!(large.holds(&variables, &mut budget), Ok(false));
    let cost = CALL_COST_MAX - budget.left();
    assert!(cost < 100 && budget.spent() > 1_000, "{cost} {}", budget.spent());
    assert_eq!(budget.spent(), (CALL_COST_MAX * WORK_PER_COST - budget.work) / WORK_PER_COST);
    let mut charged = Budget::new(100);
    assert_eq!((charged.charge(60), charged.spent()), (Ok(()), 60));
    assert_eq!((charged.charge(60), charged.spent()), (Err(CelError::Cost), 60));
    // What a call within it spends counts for it too.
    let mut outer = Budget::new(CALL_COST_MAX);
    assert_eq!(outer.call(|inner| large.holds(&variables, inner)), Ok(false));
    assert_eq!(outer.spent(), budget.spent());
}
