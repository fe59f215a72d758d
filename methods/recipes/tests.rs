//! Tests that the recipes resolve to valid experiments.

use reprpo_core::api::Layers;
use reprpo_core::config::{Layering, Resolved};
use reprpo_core::registry::{Kind, Registry};
use reprpo_plugin::prelude::*;
use reprpo_plugin::serde_json::json;

/// A stand-in for the built-in data set, which is in another crate.
#[dataset(name = "synthetic", summary = "for tests", reference = "", explain = "")]
struct Empty {}

impl DatasetPlugin for Empty {
    fn build(self) -> Result<Box<dyn Dataset>> {
        Err(Error::new("this data set is only for tests of the configuration"))
    }
}

fn resolve(registry: &Registry, recipe: &str) -> Result<Resolved> {
    let mut layers = Layering::new(registry);
    layers.defaults(include_str!("../defaults.toml"))?;
    layers.flag("--recipe", "recipe", recipe);
    layers.resolve()
}

#[test]
fn every_recipe_resolves_and_is_the_origin_of_its_values() {
    let registry = Registry::builtin().unwrap();
    let names: Vec<&str> = registry.recipes().map(|r| r.name.as_str()).collect();
    assert_eq!(names, ["dpo", "genies_mms", "repeng", "reprpo_hra", "reprpo_ortho", "reprpo_side"]);
    for recipe in registry.recipes() {
        let chosen = recipe.values["intervention"]["name"].as_str().unwrap();
        if registry.get(Kind::Intervention, chosen).is_err() {
            // In a build without the method, the error names the recipe.
            let e = format!("{:?}", resolve(&registry, &recipe.name).unwrap_err());
            assert!(
                e.starts_with(&format!(
                    "`intervention.name` in recipe {} cannot be used\n  \
                because unknown intervention `{chosen}`",
                    recipe.name
                )),
                "{e}"
            );
            continue;
        }
        let Resolved { experiment, origins } = resolve(&registry, &recipe.name).unwrap();
        assert_eq!(experiment.recipe.as_deref(), Some(recipe.name.as_str()));
        if !recipe.values.contains_key("train") {
            // A baseline without training.
            assert_eq!(experiment.intervention.name, chosen);
            continue;
        }
        assert_eq!(origins.get("train.lr").unwrap().to_string(), format!("recipe {}", recipe.name));
        let t = &experiment.train;
        assert_eq!(
            (
                t.lr,
                t.warmup,
                t.clip,
                t.step_pairs(),
                t.max_pairs,
                t.max_length,
                t.max_prompt_length
            ),
            (6e-5, 0.03, 0.3, 16, Some(5400), 196, Some(96))
        );
        assert_eq!(experiment.adapter.config["r"], json!(64));
        assert!(experiment.adapter.config["use_rslora"].as_bool().unwrap());
    }
}

#[test]
fn the_layers_of_the_recipes_equal_the_published_ones() {
    let registry = Registry::builtin().unwrap();
    let layers = |name: &str, places: usize| {
        let recipe = registry.recipe(name).unwrap();
        assert_eq!(recipe.values["tap"]["pooling"].as_str(), Some("common"));
        Layers(recipe.values["tap"]["layers"].as_str().unwrap().to_owned()).resolve(places).unwrap()
    };
    assert_eq!(layers("reprpo_side", 22), [10, 12, 14, 16, 18]);
    assert_eq!(layers("reprpo_ortho", 23), [10, 20]);
    assert_eq!(layers("reprpo_hra", 23), [10, 20]);
    assert!(
        registry
            .recipes()
            .filter(|r| r.values.contains_key("tap"))
            .all(|r| r.summary.len() < 100 && r.published.contains("one seed"))
    );
}
