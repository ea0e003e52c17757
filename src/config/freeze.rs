//! `optim.freeze`: parts of a network by name.

use crate::model::freeze::{Freeze, Part};
use crate::model::spec::ResNetSpec;

/// What other programs call a part.
const OTHER_NAMES: [(&str, &str); 5] =
    [("conv1", "stem"), ("bn1", "stem"), ("head", "fc"), ("classifier", "fc"), ("backbone", "stem..layer4")];

/// `stem..layer3` (both ends included), single names, or several of either with commas; nothing: none. The error is the rest
/// of a sentence that begins with the key.
pub fn parse(text: &str, spec: &ResNetSpec) -> Result<Freeze, String> {
    let parts = Part::all(spec);
    let place = |name: &str| {
        let name = name.trim();
        let found = parts.iter().position(|part| part.to_string() == name);
        found.ok_or_else(|| unknown(name, spec))
    };
    let mut frozen = Freeze::NONE;
    for item in text.split(',').filter(|_| !text.trim().is_empty()) {
        let (first, last) = item.split_once("..").unwrap_or((item, item));
        let (first, last) = (place(first)?, place(last.trim_start_matches('='))?);
        if first > last {
            return Err(format!("is \"{text}\": {} comes after {}", parts[first], parts[last]));
        }
        parts[first..=last].iter().for_each(|&part| frozen.add(part));
    }
    if parts.iter().all(|&part| frozen.has(part)) {
        return Err(format!("is \"{text}\": nothing is left to train; leave fc out"));
    }
    Ok(frozen)
}

fn unknown(name: &str, spec: &ResNetSpec) -> String {
    let parts: Vec<String> = Part::all(spec).iter().map(Part::to_string).collect();
    let expected = format!(
        "expected parts of {}: {}, or a range of them as in stem..layer3",
        spec.name,
        parts.join(", ")
    );
    if name.is_empty() {
        return format!("has nothing where a name belongs; {expected}");
    }
    let other = OTHER_NAMES.iter().find(|(theirs, _)| *theirs == name).map(|(_, ours)| *ours);
    let distance = |part: &&String| strsim::damerau_levenshtein(part, name);
    let nearest = parts.iter().min_by_key(distance).map(String::as_str).unwrap_or_default();
    format!("names \"{name}\", the nearest is {}; {expected}", other.unwrap_or(nearest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::spec::{RESNET_TINY, RESNET50};

    fn parts(text: &str) -> Vec<String> {
        let freeze = parse(text, &RESNET50).unwrap();
        Part::all(&RESNET50)
            .into_iter()
            .filter(|&part| freeze.has(part))
            .map(|part| part.to_string())
            .collect()
    }

    #[test]
    fn names_and_ranges() {
        assert_eq!(parts("stem..layer3"), ["stem", "layer1", "layer2", "layer3"]);
        assert_eq!(parts(" stem , layer2..layer3"), ["stem", "layer2", "layer3"]);
        assert_eq!(parts("layer1"), ["layer1"]);
        assert_eq!(parts(""), [""; 0]);
        assert_eq!(parse("stem..layer3", &RESNET50), Ok(Freeze::up_to(3)));
        assert_eq!(parse("layer2", &RESNET50), Ok(Freeze::only(Part::Layer(2))));
    }

    #[test]
    fn what_is_wrong_is_named_with_the_nearest() {
        let error = |text: &str| parse(text, &RESNET50).unwrap_err();
        assert!(
            error("layre3")
                .starts_with("names \"layre3\", the nearest is layer3; expected parts of resnet50")
        );
        assert!(
            error("stem..layer5").contains("\"layer5\", the nearest is layer"),
            "{}",
            error("stem..layer5")
        );
        assert!(error("conv1").contains("the nearest is stem;"));
        assert!(error("layer3..stem").contains("layer3 comes after stem"));
        assert!(error("stem..fc").contains("nothing is left to train"));
        assert!(error("stem,,fc").starts_with("has nothing where a name belongs"));
        assert!(parse("layer3", &RESNET_TINY).unwrap_err().contains("stem, layer1, layer2, fc"));
    }
}
