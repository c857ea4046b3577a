//! The build graph: stages, what they stand on, and which of them the wanted one needs.

use std::collections::{BTreeMap, BTreeSet};

use crate::Error;
use crate::expand::expand;
use crate::parser::{Dockerfile, Instruction, Step};

/// What a stage stands on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Base {
    /// Nothing.
    Scratch,
    /// An image of the store or a registry.
    Image(String),
    /// An earlier stage.
    Stage(usize),
}

/// A stage of a build.
#[derive(Debug, Clone)]
pub(crate) struct Stage {
    pub(crate) base: Base,
    pub(crate) platform: Option<String>,
    pub(crate) name: Option<String>,
    /// FROM itself.
    pub(crate) from: Step,
    /// What follows it.
    pub(crate) steps: Vec<Step>,
}

/// A build, ready to be carried out.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) stages: Vec<Stage>,
    /// The stage that becomes the image.
    pub(crate) target: usize,
    /// The stages that it needs, itself included, in order.
    pub(crate) needed: BTreeSet<usize>,
    /// Arguments before the first FROM.
    pub(crate) arguments: BTreeMap<String, String>,
    pub(crate) escape: char,
}

impl Plan {
    /// The stage that COPY --from means: a name or a number of an earlier stage.
    pub(crate) fn stage(&self, before: usize, name: &str) -> Option<usize> {
        find(&self.stages[..before], name)
    }

    /// Counts in what the triggers of a stage's base copy from: only the base's image knows them.
    pub(crate) fn need_for(&mut self, stage: usize, triggers: &[Step]) {
        let copied =
            triggers.iter().filter_map(|step| copied_stage(&self.stages[..stage], &step.instruction));
        follow(&self.stages, copied.collect(), &mut self.needed);
    }

    /// The number of steps to be carried out.
    pub(crate) fn step_count(&self) -> usize {
        self.needed.iter().map(|stage| 1 + self.stages[*stage].steps.len()).sum()
    }
}

fn find(stages: &[Stage], name: &str) -> Option<usize> {
    let named = stages.iter().rposition(|stage| stage.name.as_deref() == Some(&name.to_ascii_lowercase()));
    named.or_else(|| name.parse().ok().filter(|number| *number < stages.len()))
}

/// Groups a Dockerfile into stages. `given` are the build's arguments; `target` the stage to stop at, or empty.
pub(crate) fn plan(file: Dockerfile, given: &BTreeMap<String, String>, target: &str) -> Result<Plan, Error> {
    let mut arguments = platform_arguments();
    let mut stages: Vec<Stage> = Vec::new();
    for step in file.steps {
        let line = step.line;
        let parse_error = |message: String| Error::Parse { line, message };
        let replaced = |text: &str, known: &BTreeMap<String, String>| {
            expand(text, file.escape, &|name| known.get(name).cloned()).map_err(parse_error)
        };
        match (&step.instruction, stages.last_mut()) {
            (Instruction::From { image, platform, name }, _) => {
                let image = replaced(image, &arguments)?;
                if image.is_empty() {
                    return Err(parse_error(format!("base name ({}) should not be blank", step.text)));
                }
                let base = match find_named(&stages, &image) {
                    Some(stage) => Base::Stage(stage),
                    None if image == "scratch" => Base::Scratch,
                    None => Base::Image(image),
                };
                let platform = platform.as_deref().map(|text| replaced(text, &arguments)).transpose()?;
                let name = name.clone();
                stages.push(Stage { base, platform, name, from: step, steps: Vec::new() });
            }
            (Instruction::Arg(pairs), None) => {
                for (name, default) in pairs {
                    let default = default.as_deref().map(|text| replaced(text, &arguments)).transpose()?;
                    if let Some(value) = given.get(name).cloned().or(default) {
                        arguments.insert(name.clone(), value);
                    }
                }
            }
            (_, None) => {
                return Err(parse_error(
                    "no build stage in current context: FROM must come first".to_owned(),
                ));
            }
            (_, Some(stage)) => stage.steps.push(step),
        }
    }
    let target = match (target, stages.len()) {
        (_, 0) => return Err(Error::invalid("the Dockerfile has no FROM")),
        ("", count) => count - 1,
        (name, _) => find(&stages, name)
            .ok_or_else(|| Error::invalid(format!("failed to reach build target {name} in Dockerfile")))?,
    };
    let needed = needed(&stages, target);
    Ok(Plan { stages, target, needed, arguments, escape: file.escape })
}

/// FROM means a stage by name only: `FROM 0` is an image.
fn find_named(stages: &[Stage], name: &str) -> Option<usize> {
    stages.iter().rposition(|stage| stage.name.as_deref() == Some(&name.to_ascii_lowercase()))
}

fn needed(stages: &[Stage], target: usize) -> BTreeSet<usize> {
    let mut needed = BTreeSet::new();
    follow(stages, vec![target], &mut needed);
    needed
}

/// Adds stages and what they need in turn.
fn follow(stages: &[Stage], mut waiting: Vec<usize>, needed: &mut BTreeSet<usize>) {
    while let Some(stage) = waiting.pop() {
        if !needed.insert(stage) {
            continue;
        }
        let earlier = &stages[..stage];
        waiting
            .extend(stages[stage].steps.iter().filter_map(|step| copied_stage(earlier, &step.instruction)));
        if let Base::Stage(base) = stages[stage].base {
            waiting.push(base);
            // The base's triggers are this stage's first steps.
            waiting.extend(stages[base].steps.iter().filter_map(|step| match &step.instruction {
                Instruction::Onbuild { trigger, .. } => copied_stage(earlier, trigger),
                _ => None,
            }));
        }
    }
}

/// The stage that an instruction copies from.
fn copied_stage(earlier: &[Stage], instruction: &Instruction) -> Option<usize> {
    match instruction {
        Instruction::Copy(transfer) => find(earlier, transfer.from.as_deref()?),
        _ => None,
    }
}

/// The arguments that every build knows before FROM.
fn platform_arguments() -> BTreeMap<String, String> {
    let host = image::document::Platform::host();
    let mut arguments = BTreeMap::new();
    for side in ["TARGET", "BUILD"] {
        arguments.insert(format!("{side}PLATFORM"), format!("{}/{}", host.os, host.architecture));
        arguments.insert(format!("{side}OS"), host.os.clone());
        arguments.insert(format!("{side}ARCH"), host.architecture.clone());
    }
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parser::parse;

    fn planned(text: &str, target: &str) -> Result<Plan, Error> {
        let given = BTreeMap::from([("TAG".to_owned(), "7".to_owned())]);
        plan(parse(text).unwrap(), &given, target)
    }

    #[test]
    fn only_needed_stages_are_built() {
        let text = "FROM a AS one\nRUN x\nFROM b AS two\nFROM one AS three\nCOPY --from=0 x y\nFROM scratch\nCOPY --from=three z /\n";
        let plan = planned(text, "").unwrap();
        assert_eq!(plan.needed, BTreeSet::from([0, 2, 3]));
        assert_eq!(plan.step_count(), 2 + 2 + 2);
        assert_eq!(plan.stages[2].base, Base::Stage(0));
        assert_eq!(plan.stages[3].base, Base::Scratch);
        assert_eq!(planned(text, "TWO").unwrap().needed, BTreeSet::from([1]));
        assert_eq!(planned(text, "0").unwrap().needed, BTreeSet::from([0]));
        assert!(planned(text, "none").is_err());
    }

    #[test]
    fn triggers_need_stages_too() {
        let text = "FROM a AS files\nFROM b AS base\nONBUILD COPY --from=files x y\nFROM base\nCMD x\n";
        assert_eq!(planned(text, "").unwrap().needed, BTreeSet::from([0, 1, 2]));
        assert_eq!(planned(text, "base").unwrap().needed, BTreeSet::from([1]), "they fire later");
        let mut plan = planned("FROM a AS one\nFROM one AS two\nFROM c\nFROM d\n", "").unwrap();
        assert_eq!(plan.needed, BTreeSet::from([3]));
        plan.need_for(3, &[crate::parser::parse_step("COPY --from=two x y", '\\').unwrap()]);
        assert_eq!(plan.needed, BTreeSet::from([0, 1, 3]));
    }

    #[test]
    fn a_stage_names_itself_only_to_later_ones() {
        let plan = planned("FROM base AS base\nFROM base\n", "").unwrap();
        assert_eq!(plan.stages[0].base, Base::Image("base".to_owned()));
        assert_eq!(plan.stages[1].base, Base::Stage(0));
        assert_eq!(plan.stage(1, "1"), None);
    }

    #[test]
    fn arguments_before_from_choose_the_base() {
        let plan =
            planned("ARG TAG=6\nARG NAME=x${TAG}\nFROM --platform=$TARGETPLATFORM $NAME:$TAG\n", "").unwrap();
        assert_eq!(plan.stages[0].base, Base::Image("x7:7".to_owned()));
        assert!(plan.stages[0].platform.as_deref().unwrap().starts_with("linux/"));
        assert!(planned("RUN x\nFROM a", "").is_err());
        assert!(planned("FROM $NONE", "").is_err());
    }
}
