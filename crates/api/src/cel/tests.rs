//! Expressions and their values.

use serde_json::{Value, json};

use super::*;

fn run(source: &str, object: &Value) -> Result<String, String> {
    let program = Program::compile(source, &["self", "oldSelf"])?;
    let variables = Variables::default().json("self", object);
    let value =
        program.run(&variables, &mut Budget::new(CALL_COST_MAX)).map_err(|error| error.to_string())?;
    Ok(match value {
        Val::Bool(value) => value.to_string(),
        other => format!("{other:?}"),
    })
}

#[test]
fn expressions_are_what_upstream_makes_of_them() {
    let object = json!({"a": 1, "b": "text", "list": [1, 2, 3], "map": {"k": "v", "k2": "v2"}, "d": 1.5, "n": null,
        "items": [{"name": "x", "port": 80}, {"name": "y", "port": 443}]});
    for source in [
        "self.a == 1 && self.b == 'text'",
        "self.a + 2 * 3 == 7 && 7 / 2 == 3 && 7 % 2 == 1",
        "1 == 1.0 && 2 > 1.5 && 1u < 2u",
        "has(self.a) && !has(self.zzz)",
        "'k' in self.map && !('z' in self.map) && 2 in self.list",
        "self.map['k'] == 'v' && self.list[2] == 3",
        "self.list.all(x, x > 0) && self.list.exists(x, x == 2) && self.list.exists_one(x, x == 2)",
        "self.list.map(x, x * 2) == [2, 4, 6] && self.list.filter(x, x > 1).size() == 2",
        "self.map.all(k, k.startsWith('k'))",
        "self.items.all(one, self.items.exists_one(other, other.name == one.name))",
        "self.b.size() == 4 && size(self.b) == 4",
        "self.b.matches('^t.*t$') && self.b.contains('ex') && self.b.endsWith('xt')",
        "!'\u{663}'.matches(r'^\\d$') && '{{x}}'.matches('^{{.*}}$') && 'a&b'.matches('^[a&&b]+$')",
        "self.b.upperAscii() == 'TEXT' && 'a,b'.split(',') == ['a', 'b'] && ['a', 'b'].join('-') == 'a-b'",
        "'abc'.substring(1) == 'bc' && 'abc'.indexOf('c') == 2 && 'abc'.charAt(0) == 'a' && ' x '.trim() == 'x'",
        "'hello'.replace('l', 'L', 1) == 'heLlo' && '%s-%d'.format(['a', 3]) == 'a-3'",
        r#"'%s'.format([{'b': [1.5, "x", null], 'a': duration('2h'), 'c': b'z'}])
            == '{"a":duration("7200s"), "b":[1.500000, "x", null], "c":b"z"}'"#,
        "'%s %s %s'.format([type(1), double('Infinity'), 0.000000002]) == 'int +Inf 2e-09'",
        "'%.2f|%.1e'.format([self.d * 1000.0, self.d]) == '1,500.00|1.5\\u202f\\u00d7\\u202f10\\u2070\\u2070'",
        "string(1000000.0) == '1e+06' && string(123456.0) == '123456' && string(0.0001) == '0.0001'",
        "'abc 123'.find('[0-9]+') == '123' && 'a1b2'.findAll('[0-9]') == ['1', '2']",
        "[3, 1, 2].max() == 3 && [1, 2].isSorted() && [1, 2, 3].sum() == 6 && [1, 2, 1].lastIndexOf(1) == 2",
        "sets.contains([1, 2, 3], [2]) && sets.equivalent([1, 2], [2, 1]) && sets.intersects([1], [1, 2])",
        "quantity('1Gi').isGreaterThan(quantity('1000Mi')) && isQuantity('5m') && !isQuantity('x')",
        "quantity('2').add(quantity('500m')).compareTo(quantity('2500m')) == 0 && quantity('3').asInteger() == 3",
        "ip('10.0.0.1').family() == 4 && isIP('::1') && !isIP('10.0.0') && ip('127.0.0.1').isLoopback()",
        "cidr('10.0.0.0/8').containsIP('10.1.2.3') && !cidr('10.0.0.0/8').containsIP(ip('11.0.0.1'))",
        "cidr('10.0.0.0/8').containsCIDR('10.1.0.0/16') && cidr('10.1.2.3/8').masked() == cidr('10.0.0.0/8')",
        "url('https://example.com:80/p?a=b').getHost() == 'example.com:80' && isURL('/x') && !isURL('no url')",
        "url('https://example.com/p?a=b').getQuery()['a'] == ['b']",
        "duration('1h') > duration('59m') && duration('90s').getMinutes() == 1",
        "timestamp('2026-01-02T03:04:05Z').getFullYear() == 2026 && timestamp('2026-01-02T03:04:05Z').getMonth() == 0",
        "timestamp('2026-01-02T00:00:00Z') - timestamp('2026-01-01T00:00:00Z') == duration('24h')",
        "type(optional.of(1)) == optional_type && type(self.?zzz) == optional_type && type(1) != optional_type",
        "type(self.a) == int && string(1) == '1' && int('3') == 3 && double(1) == 1.0",
        "self.?zzz.orValue('none') == 'none' && self.?a.hasValue() && self.map[?'zz'].orValue('d') == 'd'",
        "optional.of(1).value() == 1 && !optional.none().hasValue() && self.?a.optMap(x, x + 1).orValue(0) == 2",
        "!format.datetime().validate('2026-01-01T00:00:00Z').hasValue() && format.datetime().validate('x').hasValue()",
        "format.dns1123Label().validate('a-b').hasValue() == false && format.dns1123Label().validate('A').hasValue()",
        "true || self.zzz == 1",
        "self.zzz == 1 || true",
        "!(false && self.zzz == 1)",
        "self.list.exists(x, x == 2 || self.zzz)",
        "self.n == null && self.a != null",
        "self.a > 0 ? true : self.zzz",
        "{'a': 1}.a == 1 && {'a': {'b': 2}} == {'a': {'b': 2}}",
        "self.list.all(i, v, v == i + 1) && self.list.transformList(i, v, i + v) == [1, 3, 5]",
        "semver('1.2.3').isLessThan(semver('1.10.0')) && semver('1.0.0-alpha.1').compareTo(semver('1.0.0-alpha.beta')) == -1",
        "semver('v1.0', true) == semver('1.0.0') && semver('1.2.3').minor() == 2 && !isSemver('v1.0') && isSemver('v1.0', true)",
        "[1, [2, [3]]].flatten(2) == [1, 2, 3] && lists.range(3) == [0, 1, 2] && [1, 2, 3].slice(1, 3) == [2, 3]",
        "[1, 2].first().value() == 1 && ![].last().hasValue() && [1, 1, 2].distinct() == [1, 2] && [3, 1].sort() == [1, 3]",
        "jsonpatch.escapeKey('k8s.io/my~label') == 'k8s.io~1my~0label'",
        "cel.bind(x, self.a + 1, x * x) == 4 && self.map.transformMap(k, v, v + k) == {'k': 'vk', 'k2': 'v2k2'}",
        "self.list.transformMapEntry(i, v, {string(v): i}) == {'1': 0, '2': 1, '3': 2}",
        "self.map.exists(k, v, k == 'k2' && v == 'v2') && self.list.map(x, x > 1, x * 10) == [20, 30]",
        "[?self.?zzz, 1] == [1] && {?'z': self.?zzz} == {}",
        "r'\\d' == '\\\\d' && '\\x41\\101\\u0041' == 'AAA' && \"\"\"a'b\"\"\" == 'a\\'b'",
        "-5 % 3 == -2 && - self.a == -1 && 0x1F == 31 && 1e3 == 1000.0 && .5 == 0.5",
        "b'abc' == bytes('abc') && base64.decode('YWJj') == b'abc'",
        "[{'a': 2, 'b': 'x'}, {'a': 1, 'b': 'y'}].sortBy(x, x.a).map(x, x.b) == ['y', 'x'] && [].sortBy(x, x) == []",
        "self.items.sortBy(one, -one.port).map(one, one.name) == ['y', 'x'] && ['bb', 'a'].sortBy(t, size(t))[0] == 'a'",
        "[optional.of(1), optional.none()].unwrapOpt() == [1] && optional.unwrap([optional.of(2)]) == [2]",
        "self.list.includes(2) && !self.list.includes(9) && 'a'.includes('a') && !'a'.includes('b')",
    ] {
        assert_eq!(run(source, &object).as_deref(), Ok("true"), "{source}");
    }
}

#[test]
fn what_goes_wrong_is_an_error_and_no_more() {
    let object = json!({"a": 1, "s": "x"});
    for (source, wanted) in [
        ("self.zzz", "no such key: zzz"),
        ("1 / 0", "division by zero"),
        ("9223372036854775807 + 1", "return error for overflow"),
        ("self.a + self.s", "found no matching overload for '_+_' applied to '(int, string)'"),
        ("[1][5]", "index out of bounds: 5"),
        ("unknown == 1", "undeclared reference to 'unknown'"),
        (
            "self.",
            "ERROR: <input>:1:6: Syntax error: mismatched input '<EOF>' expecting IDENTIFIER\n | self.\n | .....^",
        ),
        ("", "Syntax error"),
        ("'abc'.matches('(')", "error parsing regexp: missing closing ): `(`"),
        ("'abc'.find('(?x)a')", "error parsing regexp: invalid or unsupported Perl syntax: `(?x`"),
        ("'abc'.matches('a{1001}')", "error parsing regexp: invalid repeat count: `{1001}`"),
        ("-(-9223372036854775807 - 1)", "return error for overflow"),
        ("[1, 2, 3].map(x, [1, 2, 3].map(y, zz))", "undeclared reference to 'zz'"),
        ("'x'.substring(5)", "index out of range"),
        ("semver('1.2')", "No Major.Minor.Patch elements found"),
        ("quantity('x')", "quantities must match"),
        ("[1, 'a'].sortBy(x, x)", "list elements must have the same type"),
        ("[[1]].sortBy(x, x)", "list elements must be comparable"),
        ("{'a': 1}.sortBy(x, x)", "no such overload: @sortByAssociatedKeys"),
        ("Foo{a: 1}", "undeclared"),
    ] {
        let error = run(source, &object).unwrap_err();
        assert!(error.contains(wanted), "{source}: {error}");
    }
}

#[test]
fn depth_length_and_cost_are_bounded() {
    let object = json!({});
    let deep = |count: usize| format!("{}1{} == 1", "(".repeat(count), ")".repeat(count));
    assert_eq!(run(&deep(12), &object).as_deref(), Ok("true"));
    let sum = |count: usize| format!("{}1 > 0", "1 + ".repeat(count));
    assert_eq!(run(&sum(50), &object).as_deref(), Ok("true"));
    let flat = vec!["true"; 500].join(" && ");
    assert_eq!(run(&flat, &object).as_deref(), Ok("true"));
    assert_eq!(run(&format!("{}true", "!".repeat(5000)), &object).as_deref(), Ok("true"));
    for source in [deep(1000), sum(5000), "[".repeat(5000), format!("'{}' == ''", "x".repeat(200_000))] {
        assert!(run(&source, &object).is_err());
    }
    let doubled = "[1,2,3,4,5,6,7,8,9,10].map(a, [1,2,3,4,5,6,7,8,9,10].map(b, [1,2,3,4,5,6,7,8,9,10].map(c, \
                   [1,2,3,4,5,6,7,8,9,10].map(d, [1,2,3,4,5,6,7,8,9,10].map(e, [1,2,3,4,5,6,7,8,9,10].map(f, f))))))";
    assert_eq!(run(doubled, &object).unwrap_err(), CelError::Cost.to_string());
}

#[test]
fn nonsense_does_not_panic() {
    for source in [
        "\"",
        "'\\",
        "}{",
        "self[",
        "a.b.c(",
        "1 ? 2",
        "..",
        "@",
        "self.all(1, 2)",
        "has(1)",
        "\u{0}",
        "é.ü",
        "0x",
        "1e",
        "b'\\xff'",
        "r'\\'",
        "\"\"\"a",
    ] {
        let _ = run(source, &json!({}));
    }
}

/// Numbers that are the same in every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % bound
    }
}

#[test]
fn no_text_takes_the_compiler_or_the_walk_down() {
    let words = [
        "self",
        "oldSelf",
        "x",
        "y",
        ".",
        ".a",
        ".?b",
        "[",
        "]",
        "(",
        ")",
        "{",
        "}",
        ",",
        ":",
        "?",
        "!",
        "-",
        "+",
        "*",
        "/",
        "%",
        "==",
        "<",
        "in",
        "&&",
        "||",
        "1",
        "0x",
        "2u",
        "1.5e",
        "'t'",
        "\"",
        "b'\\xff'",
        "r'\\'",
        "\\",
        "`",
        "é",
        "true",
        "null",
        "has(",
        ".all(x,",
        ".map(x,",
        ".exists(",
        "cel.bind(x,",
        "optional.of(",
        "size(",
        "\n",
        "//",
        ".format([",
        "duration('",
        "quantity(",
        ".transformMap(k,v,",
        ".sortBy(x,",
        ".unwrapOpt()",
        ".optMap(x,",
        ".includes(",
        "sets.equivalent(",
        ".flatten(",
        ".matches('(",
        "Object{",
        "for",
        "9223372036854775808",
        "-",
    ];
    let mut dice = Dice(7);
    let object = json!({"a": [1, 2], "b": {"c": "d"}});
    for _ in 0..5_000 {
        let count = 1 + dice.below(24);
        let text: String = (0..count).map(|_| words[dice.below(words.len())]).collect::<Vec<_>>().join(" ");
        let _ = checked_any(&text);
        if let Ok(program) = Program::compile(&text, &["self", "oldSelf"]) {
            let _ = program.run(&Variables::default().json("self", &object), &mut Budget::new(5_000));
        }
    }
    for part in [
        "(",
        "[",
        "{",
        "!(",
        "-(",
        "1?",
        "1?1:",
        "self.",
        "self[",
        "a(",
        "[].map(x,",
        "1+",
        "1==",
        "a&&(",
        "{1:",
    ] {
        for count in [10, 49, 60, 5_000] {
            let text = format!("{}1", part.repeat(count));
            let _ = run(&text, &object);
            let _ = checked_any(&text);
        }
    }
}

fn checked_any(source: &str) -> Result<Type, String> {
    Environment::default().with("self", Type::Dyn).with("oldSelf", Type::Text).check(source)
}

#[test]
fn variables_are_evaluated_where_they_are_asked_for_and_see_those_before() {
    let compile = |source: &str| Program::compile(source, &["variables", "self"]);
    let mut composition = Composition::default();
    for (name, source) in [
        ("one", "self.a"),
        ("two", "variables.one + 1"),
        ("broken", "self.nothing"),
        ("wrong", "1 +"),
        ("ahead", "variables.after"),
        ("after", "1"),
    ] {
        composition.add(name, compile(source));
    }
    let object = json!({"a": 1});
    let said = |source: &str| {
        let program = compile(source).unwrap();
        let variables = Variables::default().json("self", &object).composed(&composition);
        let value = program.holds(&variables, &mut Budget::new(CALL_COST_MAX));
        value.map_err(|error| error.to_string())
    };
    assert_eq!(said("variables.two == 2 && [1].all(self, variables.one == 1)"), Ok(true));
    assert_eq!(said("true || variables.broken"), Ok(true));
    assert_eq!(
        said("variables.broken == 1").unwrap_err(),
        "composited variable \"broken\" fails to evaluate: no such key: nothing"
    );
    assert!(
        said("variables.wrong == 1")
            .unwrap_err()
            .starts_with("composited variable \"wrong\" fails to compile: ERROR")
    );
    assert!(said("variables.ahead == 1").is_err());
    let mut chain = Composition::default();
    chain.add("v0", compile("1"));
    for number in 1..2_000 {
        chain.add(&format!("v{number}"), compile(&format!("variables.v{} + 1", number - 1)));
    }
    let last = compile("variables.v1999 > 0").unwrap();
    let variables = Variables::default().composed(&chain);
    let refused = last.holds(&variables, &mut Budget::new(CALL_COST_MAX)).unwrap_err();
    assert!(refused.to_string().contains("too deeply"), "{refused}");
}

#[derive(Debug)]
struct Known(Option<bool>);

impl Authority for Known {
    fn answer(&self, _: &Question) -> Option<Answer> {
        self.0.map(|allowed| Answer { allowed, reason: "because".into() })
    }
}

#[test]
fn rights_are_asked_for_and_an_unknown_answer_ends_the_evaluation() {
    let request = Question { resource: "pods".into(), ..Question::default() };
    let ask = |known: &Known, source: &str| {
        let program = Program::compile(source, &["authorizer"]).unwrap();
        let variables =
            Variables::default().with("authorizer", Val::Authz(Step::authorizer(known, request.clone())));
        // A question is paid for, but nobody computes meanwhile.
        let pace = Pace::default();
        program.holds(&variables.paced(Some(&pace)), &mut Budget::new(CALL_COST_MAX))
    };
    let source = "authorizer.group('apps').resource('deployments').namespace('n').name('x').subresource('scale')\
                  .check('get').allowed()";
    assert_eq!(ask(&Known(Some(true)), source), Ok(true));
    assert_eq!(ask(&Known(Some(false)), source), Ok(false));
    let Err(CelError::Unanswered(question)) =
        ask(&Known(None), &format!("true || false && {source} || {source}"))
            .and_then(|_| ask(&Known(None), &format!("[1].exists(x, {source}) || true")))
    else {
        panic!("an answer")
    };
    assert_eq!(
        (question.verb.as_str(), question.resource.as_str(), question.name.as_str()),
        ("get", "deployments", "x")
    );
    for (source, wanted) in [
        ("authorizer.path('/healthz').check('get').reason() == 'because'", Ok(true)),
        ("authorizer.requestResource.check('create').allowed()", Ok(true)),
        (
            "authorizer.serviceAccount('default', 'my').group('').resource('pods').check('list').allowed()",
            Ok(true),
        ),
        ("authorizer.path(' ').check('get').allowed()", Err("path must not be empty")),
        (
            "authorizer.serviceAccount('a.b', 'c').path('/').check('get').allowed()",
            Err("Invalid service account namespace"),
        ),
    ] {
        let said = ask(&Known(Some(true)), source).map_err(|error| error.to_string());
        assert_eq!(said, wanted.map_err(str::to_owned), "{source}");
    }
}

fn checked(source: &str) -> Result<String, String> {
    let row = crate::catalog::Catalog::builtin();
    let row = row.by_kind("apps", "v1", "Deployment").unwrap();
    let environment = Environment::default()
        .with("object", declared::of_kind(row))
        .with("any", Type::Dyn)
        .with("request", declared::request())
        .with("authorizer", Type::named("kubernetes.authorization.Authorizer"))
        .composed([("replicas", "object.spec.replicas")])
        .patching()
        .binding();
    environment.check(source).map(|ty| ty.to_string())
}

#[test]
fn types_are_known_before_a_run() {
    for (source, wanted) in [
        ("object.spec.replicas > 1 && object.metadata.name.startsWith('a')", "bool"),
        (
            "object.spec.template.spec.containers.all(c, c.image.contains('/') && c.resources.limits['cpu'] == '1')",
            "bool",
        ),
        ("object.spec.template.spec.containers.map(c, c.name)", "list(string)"),
        ("object.metadata.?labels[?'a'].orValue('b')", "string"),
        ("object.metadata.creationTimestamp < timestamp('2026-01-01T00:00:00Z')", "bool"),
        ("has(object.spec.strategy) ? object.spec.strategy.type : 'x'", "string"),
        ("any.spec.foo", "dyn"),
        ("any.x == 1 && any.y.contains('z') && any.l.exists(e, e in ['a'])", "bool"),
        ("any.l.filter(x, x > 1).size() + variables.replicas", "int"),
        ("authorizer.group('').resource('pods').check('get').allowed()", "bool"),
        ("authorizer.requestResource.check('get').reason()", "string"),
        ("request.userInfo.groups.exists(g, g == 'a') && request.operation == 'CREATE'", "bool"),
        ("{'a': 1}.transformMap(k, v, k + string(v))", "map(string, string)"),
        ("[JSONPatch{op: 'add', path: '/a', value: 1}]", "list(JSONPatch)"),
        ("Object{spec: Object.spec{replicas: 2}}", "Object"),
        ("quantity(any.q).isLessThan(quantity('1Gi')) && url(any.u).getHost() == 'h'", "bool"),
        ("optional.of(1).optMap(x, string(x)).orValue('')", "string"),
        ("cel.bind(x, 1, [x].sum())", "int"),
        ("object == null || null != object.spec", "bool"),
    ] {
        assert_eq!(checked(source).as_deref(), Ok(wanted), "{source}");
    }
    for (source, wanted) in [
        (
            "object.replicas > 1",
            "ERROR: <input>:1:7: undefined field 'replicas'\n | object.replicas > 1\n | ......^",
        ),
        (
            "object.spec.replicas > '1'",
            "ERROR: <input>:1:22: found no matching overload for '_>_' applied to '(int, string)'\n \
             | object.spec.replicas > '1'\n | .....................^",
        ),
        ("foo(1)", "ERROR: <input>:1:4: undeclared reference to 'foo' (in container '')\n | foo(1)\n | ...^"),
        (
            "variables.other",
            "ERROR: <input>:1:10: undefined field 'other'\n | variables.other\n | .........^",
        ),
        (
            "object.spec.replicas.all(x, true)",
            "ERROR: <input>:1:12: expression of type 'int' cannot be range of a comprehension",
        ),
        ("[1, 'a']", "expected type 'int' but found 'string'"),
        ("'a'.foo", "type 'string' does not support field selection"),
        (
            "nobody\n  == 1 && 1",
            "ERROR: <input>:1:1: undeclared reference to 'nobody' (in container '')\n | nobody\n | ^\nERROR: <input>:2:8: found no matching overload for '_&&_' applied to '(bool, int)'",
        ),
    ] {
        let error = checked(source).unwrap_err();
        assert!(error.contains(wanted), "{source}: {error}");
    }
}

/// What a run costs, in upstream's units. Source: `celcoststability_test.go` of apiextensions-apiserver.
#[test]
fn costs_are_upstreams() {
    let cost = |source: &str, object: &Value| {
        let program = Program::compile(source, &["self"]).unwrap();
        let mut budget = Budget::new(CALL_COST_MAX);
        let value = program.run(&Variables::default().json("self", object), &mut budget);
        assert!(value.is_ok(), "{source}: {value:?}");
        CALL_COST_MAX - budget.left()
    };
    let texts = json!({"val1": "Rook takes \u{1F451}"});
    for (source, wanted) in [
        ("self.val1.startsWith('Rook')", 3),
        ("!self.val1.startsWith('knight')", 4),
        ("self.val1.matches('^[^0-9]*$')", 8),
        ("!self.val1.matches('^[0-9]*$')", 7),
        ("type(self.val1) == string", 4),
        ("size(self.val1) == 12", 4),
        ("self.val1.charAt(3) == 'k'", 4),
        ("self.val1.indexOf('o') == 1", 4),
        ("self.val1.replace(' ', 'x') == 'Rookxtakesx\u{1F451}'", 7),
        ("self.val1.split(' ') == ['Rook', 'takes', '\u{1F451}']", 6),
        ("self.val1.substring(5) == 'takes \u{1F451}'", 5),
        ("self.val1.substring(4, 10).trim() == 'takes'", 6),
        ("self.val1.upperAscii() == 'ROOK TAKES \u{1F451}'", 6),
        ("self.val1.lowerAscii() == self.val1.lowerAscii()", 10),
        ("'%o %o %o'.format([7, 8, 9]) == '7 10 11'", 2),
        ("'%b %b %b'.format([7, 8, 9]) == '111 1000 1001'", 3),
        ("double(5) < 10.0", 1),
        ("5 < int(10.0)", 1),
        ("duration('1h2m') + duration('3s4ms') == duration('1h2m3s4ms')", 2),
        ("self.val1 != ['anything']", 3),
    ] {
        assert_eq!(cost(source, &texts), wanted, "{source}");
    }
    let lists = json!({"val1": [1, 2, 3], "val2": [1, 2, 3], "set": ["a", "b", "c"],
        "large": (0..1_000).collect::<Vec<i32>>()});
    for (source, wanted) in [
        ("1 in self.val1", 5),
        ("self.val2[0] in self.val1", 8),
        ("!(0 in self.val1)", 6),
        ("self.val1 + self.val2 == [1, 2, 3, 1, 2, 3]", 6),
        ("has(self.val1) && has(self.val2)", 2),
        ("sets.contains(self.set, ['a'])", 6),
        ("sets.equivalent(self.set, ['a', 'b', 'c'])", 21),
        ("sets.contains(self.large, [1])", 1_003),
        ("!sets.equivalent(self.large, [1, 2, 3])", 6_004),
        ("self.val1[0] == 1 ? true : false", 4),
    ] {
        assert_eq!(cost(source, &lists), wanted, "{source}");
    }
    let maps = json!({"val": {"b": 1, "d": 2}, "something": "25%", "a1": {"b1": {"c1": 4}}, "min": 1});
    for (source, wanted) in [
        ("'b' in self.val", 3),
        ("!has(self.val.a)", 3),
        ("has(self.a1.b1.c1)", 3),
        ("!(has(self.a1.d2) && has(self.a1.d2.e2))", 3),
        ("self.val.all(k, self.val[k] > 0)", 17),
        ("!self.val.exists(k, self.val[k] == 3)", 20),
        ("self.val.exists_one(k, self.val[k] == 2)", 14),
        ("!self.val.exists_one(k, self.val[k] > 0)", 17),
        ("size(self.val.filter(k, self.val[k] > 1)) == 1", 26),
        ("self.val.all(k, v, v > 0)", 13),
        ("!self.val.exists(k, v, v == 3)", 16),
        ("self.val.existsOne(k, v, v == 2)", 10),
        ("self.val.transformMap(k, v, v > 1, v + 1).size() == 1", 14),
        ("self.val.transformMap(k, v, v + 1).size() == 2", 15),
        ("self.val.transformMapEntry(k, v, v > 1, {k + '2': v + 1}).size() == 1", 45),
        ("self.val.transformMapEntry(k, v, {k + '2': v + 1}).size() == 2", 77),
        ("type(self.something) == int ? self.something == 1 : self.something == '25%'", 7),
        ("self.something == 1 || self.something == '25%'", 6),
        ("self.something == '25%' || self.something == 1", 3),
    ] {
        assert_eq!(cost(source, &maps), wanted, "{source}");
    }
    let items = json!({"array": [1, 1, 2, 2, 3, 3, 4, 5], "listMap": [{"k": "a1", "v": "b1"}, {"k": "a2", "v": "b2"},
        {"k": "a3", "v": "b3", "v2": "z"}]});
    for (source, wanted) in [
        ("2 in self.array", 10),
        ("self.array.all(e, e > 0)", 43),
        ("self.array.exists(e, e > 2)", 36),
        ("self.array.exists_one(e, e > 4)", 22),
        ("!self.array.all(e, e < 2)", 21),
        ("!self.array.exists(e, e < 0)", 52),
        ("size(self.array.filter(e, e%2 == 0)) == 3", 68),
        ("self.array.map(e, e * 20).filter(e, e > 50).exists(e, e == 60)", 194),
        ("self.array.transformList(i, e, e > 2, e * 2).size() > 0", 77),
        ("self.array.transformList(i, e, e * 2).size() > 0", 117),
        ("self.listMap.all(m, m.k.startsWith('a'))", 21),
        ("self.listMap.all(m, !has(m.v2) || m.v2 == 'z')", 21),
        ("self.listMap.exists(m, m.k.endsWith('1'))", 13),
        ("self.listMap.map(m, m.v).exists(v, v == 'b1')", 55),
        ("self.listMap.exists(m, has(m.v2) && m.v2 == 'z')", 21),
        ("self.listMap.map(m, has(m.v2) && m.v2 == 'z', m.v2).size() == 1", 25),
    ] {
        assert_eq!(cost(source, &items), wanted, "{source}");
    }
}
