//! Settings in a pickle as JSON: those of fairseq (`cfg`, before 2020 `args`) and of Lightning (`hyper_parameters`).

use serde_json::{Map, Number, Value as Json, json};

use super::machine::{Id, Machine, Value};

/// Deepest nesting of settings.
const DEEPEST: usize = 32;
/// Most memory of settings, about, in bytes: what is shared in a pickle is not shared in JSON.
const MOST: usize = 1 << 20;
/// What a value takes beside its text, about.
const ONE: usize = 64;

/// The settings as a `config.json`; `None` where there are none, or far more than settings have.
pub(super) fn config(machine: &Machine<'_>, root: Id) -> Option<Json> {
    let mut room = MOST;
    let mut of = |id: Id| convert(machine, id, DEEPEST, &mut room);
    if let Some(cfg) = machine.get(root, "cfg").filter(|&id| !matches!(machine.value(id), Value::None)) {
        let mut cfg = of(cfg)?;
        let (model, task) = (cfg.get_mut("model")?.take(), cfg.get_mut("task").map_or(Json::Null, Json::take));
        let name = model.get("_name").or_else(|| model.get("arch")).cloned().unwrap_or(Json::Null);
        return Some(json!({ "model_type": name, "model": model, "task": task }));
    }
    if let Some(args) = machine.get(root, "args").filter(|&id| !matches!(machine.value(id), Value::None)) {
        let model = of(args)?;
        let name = model.get("arch").cloned().unwrap_or(Json::Null);
        let task = json!({ "_name": model.get("task").cloned().unwrap_or(Json::Null) });
        return model.is_object().then(|| json!({ "model_type": name, "model": model, "task": task }));
    }
    let settings = of(machine.get(root, "hyper_parameters")?)?;
    settings.is_object().then(|| json!({ "hyper_parameters": settings }))
}

/// A value as JSON; `None` where there is no room for it.
fn convert(machine: &Machine<'_>, id: Id, depth: usize, room: &mut usize) -> Option<Json> {
    let depth = depth.checked_sub(1)?;
    *room = room.checked_sub(ONE)?;
    Some(match machine.value(id) {
        Value::Bool(value) => Json::Bool(*value),
        Value::Int(value) => Json::from(*value),
        // JSON has no infinity.
        Value::Float(value) => Number::from_f64(*value).map_or(Json::Null, Json::Number),
        Value::Text(_) => {
            let text = machine.text(id).unwrap_or_default();
            *room = room.checked_sub(text.len())?;
            Json::from(text)
        }
        Value::Tuple(parts) => list(machine, parts, depth, room)?,
        Value::List(parts) => list(machine, parts, depth, room)?,
        Value::Dict(items) => map(machine, items, depth, room)?,
        Value::Object(object) if !object.items.is_empty() => map(machine, &object.items, depth, room)?,
        Value::Object(object) => {
            let state = object.state.filter(|&state| machine.items(state).is_some());
            // OmegaConf's containers and values hold what they stand for in their state.
            let inner = state.and_then(|s| machine.get(s, "_content").or_else(|| machine.get(s, "_val")));
            match (inner.or(state), machine.value(object.args)) {
                (Some(state), _) => convert(machine, state, depth, room)?,
                // A member of an enumeration, a path: made of one value.
                (None, Value::Tuple(args)) if args.len() == 1 => convert(machine, args[0], depth, room)?,
                _ => Json::Null,
            }
        }
        Value::None | Value::Opaque | Value::Global(_) | Value::Storage(_) | Value::Tensor(_) => Json::Null,
    })
}

fn list(machine: &Machine<'_>, parts: &[Id], depth: usize, room: &mut usize) -> Option<Json> {
    parts.iter().map(|&part| convert(machine, part, depth, room)).collect::<Option<Vec<_>>>().map(Json::Array)
}

fn map(machine: &Machine<'_>, items: &[(Id, Id)], depth: usize, room: &mut usize) -> Option<Json> {
    let mut out = Map::new();
    for &(key, value) in items {
        let key = match machine.value(key) {
            Value::Text(_) => machine.text(key).unwrap_or_default().to_string(),
            Value::Int(key) => key.to_string(),
            Value::Bool(key) => key.to_string(),
            _ => continue,
        };
        *room = room.checked_sub(key.len())?;
        let value = convert(machine, value, depth, room)?;
        out.insert(key, value);
    }
    Some(Json::Object(out))
}
