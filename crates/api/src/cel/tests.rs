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
        "self.b.upperAscii() == 'TEXT' && 'a,b'.split(',') == ['a', 'b'] && ['a', 'b'].join('-') == 'a-b'",
        "'abc'.substring(1) == 'bc' && 'abc'.indexOf('c') == 2 && 'abc'.charAt(0) == 'a' && ' x '.trim() == 'x'",
        "'hello'.replace('l', 'L', 1) == 'heLlo' && '%s-%d'.format(['a', 3]) == 'a-3'",
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
        "type(self.a) == int && string(1) == '1' && int('3') == 3 && double(1) == 1.0",
        "self.?zzz.orValue('none') == 'none' && self.?a.hasValue() && self.map[?'zz'].orValue('d') == 'd'",
        "optional.of(1).value() == 1 && !optional.none().hasValue() && self.?a.optMap(x, x + 1).orValue(0) == 2",
        "format.dns1123Label().validate('a-b').hasValue() == false && format.dns1123Label().validate('A').hasValue()",
        "true || self.zzz == 1",
        "self.zzz == 1 || true",
        "!(false && self.zzz == 1)",
        "self.list.exists(x, x == 2 || self.zzz)",
        "self.n == null && self.a != null",
        "self.a > 0 ? true : self.zzz",
        "{'a': 1}.a == 1 && {'a': {'b': 2}} == {'a': {'b': 2}}",
        "self.list.all(i, v, v == i + 1) && self.list.transformList(i, v, i + v) == [1, 3, 5]",
        "b'abc' == bytes('abc') && base64.decode('YWJj') == b'abc'",
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
        ("self.", "Syntax error"),
        ("", "Syntax error"),
        ("'abc'.matches('(')", "error parsing regexp"),
        ("-(-9223372036854775807 - 1)", "return error for overflow"),
        ("[1, 2, 3].map(x, [1, 2, 3].map(y, zz))", "undeclared reference to 'zz'"),
        ("'x'.substring(5)", "index out of range"),
        ("quantity('x')", "quantities must match"),
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
    for source in [
        deep(1000),
        sum(5000),
        format!("{}true", "!".repeat(5000)),
        format!("'{}' == ''", "x".repeat(20_000)),
    ] {
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
