//! Selectors of devices: what an expression says of one device that a driver offers.
//! Source: `k8s.io/dynamic-resource-allocation/cel/compile.go`.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::declared::device_selector;
use super::{Budget, CelError, Key, Program, Semver, Text, Type, Val, Variables};
use crate::quantity::Quantity;

/// What the evaluation for one device may cost. Source: `CELSelectorExpressionMaxCost`.
pub const SELECTOR_COST_MAX: u64 = 1_000_000;

/// What a driver says of a device under a name.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the types of `resource.k8s.io/v1.DeviceAttribute`")]
pub enum Attribute {
    Int(i64),
    Bool(bool),
    Text(String),
    Version(String),
}

/// A device as expressions see it, made once for however many of them.
#[derive(Debug, Clone)]
pub struct Device(Val<'static>);

/// An expression that selects devices.
#[derive(Debug, Clone)]
pub struct Selector(Program);

type Values = BTreeMap<Key<'static>, Val<'static>>;

impl Device {
    /// A device of a driver. Names without a domain are in the driver's. The failure is what expressions cannot be shown.
    pub fn new<'a>(
        driver: &str,
        shared: bool,
        attributes: impl Iterator<Item = (&'a String, &'a Attribute)>,
        capacity: impl Iterator<Item = (&'a String, Quantity)>,
    ) -> Result<Self, String> {
        let attributes = attributes
            .map(|(name, value)| match attribute(value) {
                Ok(value) => Ok((name.as_str(), value)),
                Err(why) => Err(format!("attribute {name}: {why}")),
            })
            .collect::<Result<Vec<_>, _>>()?;
        let capacity = capacity.map(|(name, amount)| (name.as_str(), Val::Quantity(Arc::new(amount))));
        let told = |failure: CelError| failure.to_string();
        let fields = [
            ("driver", Val::text(driver)),
            ("allowMultipleAllocations", Val::Bool(shared)),
            ("attributes", by_domain(driver, attributes.into_iter()).map_err(told)?),
            ("capacity", by_domain(driver, capacity).map_err(told)?),
        ];
        let fields = fields.into_iter().map(|(name, value)| (Key::Text(Text::Given(name)), value));
        Val::map(fields.collect()).map(Self).map_err(told)
    }
}

fn attribute(value: &Attribute) -> Result<Val<'static>, String> {
    Ok(match value {
        Attribute::Int(number) => Val::Int(*number),
        Attribute::Bool(yes) => Val::Bool(*yes),
        Attribute::Text(text) => Val::text(text),
        Attribute::Version(text) => {
            let version =
                Semver::parse(text, false).map_err(|why| format!("parse semantic version: {why}"))?;
            Val::Semver(Arc::new(version))
        }
    })
}

/// A map of maps: a domain of which nothing is said is empty.
fn by_domain<'a>(
    driver: &str,
    values: impl Iterator<Item = (&'a str, Val<'static>)>,
) -> Result<Val<'static>, CelError> {
    let key = |text: &str| Key::Text(Text::Made(text.into()));
    let mut domains: BTreeMap<Key<'static>, Values> = BTreeMap::new();
    for (name, value) in values {
        let (domain, id) = name.split_once('/').unwrap_or((driver, name));
        domains.entry(key(domain)).or_default().insert(key(id), value);
    }
    let domains = domains
        .into_iter()
        .map(|(domain, values)| Ok((domain, Val::map(values)?)))
        .collect::<Result<_, _>>()?;
    Val::mapped(domains, Some(Val::map(Values::new())?))
}

impl Selector {
    /// Reads an expression; the failure is upstream's.
    pub fn compile(source: &str) -> Result<Self, String> {
        match device_selector(source) {
            Ok((Type::Bool | Type::Dyn, _)) => Program::compile(source, &["device"]).map(Self),
            Ok((ty, _)) => Err(format!("must evaluate to bool or the unknown type, not {}", ty.full_name())),
            Err(problem) => Err(format!("compilation failed: {problem}")),
        }
    }

    /// Whether it selects a device; what that costs is paid from `budget`.
    pub fn matches(&self, device: &Device, budget: &mut Budget) -> Result<bool, CelError> {
        self.0.holds(&Variables::default().with("device", device.0.clone()), budget)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_see_what_a_driver_says_of_a_device() {
        let text = |text: &str| text.to_owned();
        let attributes = BTreeMap::from([
            (text("model"), Attribute::Text(text("a100"))),
            (text("other.example/index"), Attribute::Int(3)),
            (text("ready"), Attribute::Bool(true)),
            (text("version"), Attribute::Version(text("1.2.3"))),
        ]);
        let capacity = BTreeMap::from([(text("memory"), "80Gi".parse().unwrap())]);
        let capacity = || capacity.iter().map(|(name, amount)| (name, *amount));
        let device = Device::new("gpu.example.com", false, attributes.iter(), capacity()).unwrap();
        for (source, wanted) in [
            ("device.driver == 'gpu.example.com'", Ok(true)),
            ("device.attributes['gpu.example.com'].model == 'a100'", Ok(true)),
            ("device.attributes['other.example'].index > 3", Ok(false)),
            (
                "cel.bind(own, device.attributes['gpu.example.com'], own.ready && own.model == 'a100')",
                Ok(true),
            ),
            ("device.attributes['gpu.example.com'].version.isGreaterThan(semver('1.2.0'))", Ok(true)),
            ("device.capacity['gpu.example.com'].memory.compareTo(quantity('40Gi')) >= 0", Ok(true)),
            ("device.attributes['gpu.example.com'].ready", Ok(true)),
            ("device.allowMultipleAllocations", Ok(false)),
            // Of a domain that nothing is said of, nothing is known; but it is no error to ask.
            ("has(device.attributes['none.example'].x)", Ok(false)),
            ("'none.example' in device.attributes || 'gpu.example.com' in device.capacity", Ok(true)),
            ("size(device.attributes) == 2", Ok(true)),
            ("device.attributes['none.example'].x == 1", Err("no such key: x")),
            ("device.attributes['gpu.example.com'].model", Err("expected a bool, found string")),
        ] {
            let selected = Selector::compile(source).unwrap();
            let mut budget = Budget::new(SELECTOR_COST_MAX);
            let selected = selected.matches(&device, &mut budget).map_err(|failure| failure.to_string());
            assert_eq!(selected, wanted.map_err(str::to_owned), "{source}");
            assert!(budget.left() < SELECTOR_COST_MAX, "{source} costs something");
        }
        let problem = Selector::compile("device.driver").err();
        assert_eq!(problem.as_deref(), Some("must evaluate to bool or the unknown type, not string"));
        assert!(Selector::compile("device.").is_err_and(|why| why.starts_with("compilation failed: ")));
        let broken = [(text("v"), Attribute::Version(text("one")))];
        let broken = broken.iter().map(|(name, value)| (name, value));
        assert!(
            Device::new("d", true, broken, capacity())
                .is_err_and(|why| why.starts_with("attribute v: parse"))
        );
    }
}
