//! What the new shards hold: headers and sources, before anything is written. Pure, but for the baseline's headers.

use std::{collections::BTreeMap, path::Path};

use packhost_tensor::DType;
use serde_json::{Map, Value, json};

use super::{Change, Changes};
use crate::{
    checkpoint::Checkpoint,
    error::{Error, Result},
    header::{Entry, Header},
    shard::Shard,
    weights::TensorMeta,
};

/// What becomes of one of the baseline's shards. One whose tensors all go has no plan.
#[derive(Debug)]
pub(super) enum Plan {
    /// Nothing in it changes.
    Keep(String),
    /// It is written anew.
    Write(NewShard),
}

/// A shard to be written.
#[derive(Debug)]
pub(super) struct NewShard {
    pub name: String,
    pub header: Header,
    /// Where each entry of the header comes from.
    pub sources: Vec<Source>,
}

impl NewShard {
    /// Size of the finished file.
    pub fn file_len(&self) -> u64 {
        (self.header.data_start + self.header.entries.last().map_or(0, |entry| entry.end)) as u64
    }
}

/// Where a tensor's bytes come from.
#[derive(Debug)]
pub(super) enum Source {
    /// The baseline's shard of the same name, from this byte of the file on.
    File { offset: u64 },
    /// The caller.
    Produced,
}

/// One tensor of a new shard.
struct Item {
    name: String,
    dtype: DType,
    shape: Vec<usize>,
    bytes: usize,
    source: Source,
}

/// The new checkpoint's shards, in the baseline's order.
pub(super) fn plan(base: &Checkpoint, dir: &Path, changes: &Changes) -> Result<Vec<Plan>> {
    check_names(base, changes)?;
    let mut added = added_by_shard(base, changes)?;
    let mut plans = Vec::new();
    for shard in base.shards() {
        let added = added.remove(shard.name()).unwrap_or_default();
        let mine = |entry: &&Entry| {
            base.locate(&entry.name)
                .is_ok_and(|(owner, _)| owner.name() == shard.name())
        };
        let touched = |entry: &Entry| changes.tensors.contains_key(&entry.name);
        if added.is_empty() && !shard.header().entries.iter().filter(mine).any(touched) {
            plans.push(Plan::Keep(shard.name().into()));
            continue;
        }
        let mut entries: Vec<&Entry> = shard.header().entries.iter().filter(mine).collect();
        entries.sort_by_key(|entry| (entry.start, entry.end));
        let mut items = Vec::new();
        for entry in entries {
            items.extend(changed_item(
                shard,
                entry,
                changes.tensors.get(&entry.name),
            )?);
        }
        items.extend(added);
        if !items.is_empty() {
            plans.push(Plan::Write(new_shard(shard, items)?));
        }
    }
    if plans.is_empty() {
        return Err(Error::Write {
            path: dir.into(),
            problem: "no tensor would be left".into(),
        });
    }
    Ok(plans)
}

/// Every tensor whose values change or that goes must be there.
fn check_names(base: &Checkpoint, changes: &Changes) -> Result<()> {
    for (name, change) in &changes.tensors {
        if !matches!(change, Change::Form { .. }) {
            base.locate(name)?;
        }
    }
    Ok(())
}

/// New tensors join the shard of the tensor before them in module order, or the first shard.
fn added_by_shard(base: &Checkpoint, changes: &Changes) -> Result<BTreeMap<String, Vec<Item>>> {
    let mut added: BTreeMap<String, Vec<Item>> = BTreeMap::new();
    for (name, change) in &changes.tensors {
        let Change::Form { dtype, shape } = change else {
            continue;
        };
        if base.locate(name).is_ok() {
            continue;
        }
        let order = TensorMeta::new(name, *dtype, shape).order();
        let after = base.tensors().partition_point(|meta| meta.order() < order);
        let neighbour = after.checked_sub(1).and_then(|at| base.tensors().get(at));
        let shard = match neighbour {
            Some(meta) => base.locate(&meta.name)?.0.name().to_owned(),
            None => base
                .shards()
                .first()
                .map(|shard| shard.name().to_owned())
                .unwrap_or_default(),
        };
        added
            .entry(shard)
            .or_default()
            .push(Item::produced(name, *dtype, shape)?);
    }
    Ok(added)
}

/// `entry` as it will be; `None` when it goes.
fn changed_item(shard: &Shard, entry: &Entry, change: Option<&Change>) -> Result<Option<Item>> {
    Ok(match change {
        Some(Change::Remove) => None,
        Some(Change::Values) => Some(Item::produced(&entry.name, entry.dtype, &entry.shape)?),
        Some(Change::Form { dtype, shape }) => Some(Item::produced(&entry.name, *dtype, shape)?),
        None => Some(Item {
            name: entry.name.clone(),
            dtype: entry.dtype,
            shape: entry.shape.clone(),
            bytes: entry.end - entry.start,
            source: Source::File {
                offset: (shard.header().data_start + entry.start) as u64,
            },
        }),
    })
}

impl Item {
    fn produced(name: &str, dtype: DType, shape: &[usize]) -> Result<Self> {
        let bytes = shape
            .iter()
            .try_fold(dtype.size(), |product, &axis| product.checked_mul(axis))
            .ok_or_else(|| packhost_tensor::Error::TooLarge {
                shape: shape.into(),
            })?;
        Ok(Self {
            name: name.into(),
            dtype,
            shape: shape.into(),
            bytes,
            source: Source::Produced,
        })
    }
}

/// Lays `items` out. Wide dtypes come first, so that every tensor is aligned to its elements, as readers expect; files of
/// the reference writer are ordered so already and keep their order.
fn new_shard(old: &Shard, mut items: Vec<Item>) -> Result<NewShard> {
    items.sort_by_key(|item| std::cmp::Reverse(item.dtype.size()));
    let mut header = Header {
        entries: Vec::new(),
        metadata: old.header().metadata.clone(),
        data_start: 0,
    };
    // The model library refuses files that do not say which framework wrote them.
    header
        .metadata
        .entry("format".into())
        .or_insert_with(|| "pt".into());
    let mut sources = Vec::new();
    let mut start = 0_usize;
    for item in items {
        let end =
            start
                .checked_add(item.bytes)
                .ok_or_else(|| packhost_tensor::Error::TooLarge {
                    shape: item.shape.clone(),
                })?;
        header.entries.push(Entry {
            name: item.name,
            dtype: item.dtype,
            shape: item.shape,
            start,
            end,
        });
        sources.push(item.source);
        start = end;
    }
    header.data_start = header.to_bytes().len();
    Ok(NewShard {
        name: old.name().into(),
        header,
        sources,
    })
}

/// The index file: where every tensor is, and the sums that the model library keeps beside it.
pub(super) fn index_json(base: &Checkpoint, plans: &[Plan]) -> Vec<u8> {
    let mut weight_map = Map::new();
    let (mut bytes, mut elements) = (0_u64, 0_u64);
    let mut list = |name: &str, shard: &str, entry: &Entry| {
        weight_map.insert(name.into(), shard.into());
        bytes += (entry.end - entry.start) as u64;
        elements += entry.shape.iter().map(|&axis| axis as u64).product::<u64>();
    };
    for plan in plans {
        match plan {
            Plan::Write(shard) => shard
                .header
                .entries
                .iter()
                .for_each(|entry| list(&entry.name, &shard.name, entry)),
            Plan::Keep(kept) => {
                for meta in base.tensors() {
                    if let Ok((shard, entry)) = base.locate(&meta.name)
                        && shard.name() == kept
                    {
                        list(&entry.name, kept, entry);
                    }
                }
            }
        }
    }
    let mut metadata = base.index_metadata().cloned().unwrap_or_default();
    metadata.insert("total_size".into(), bytes.into());
    if metadata.contains_key("total_parameters") {
        metadata.insert("total_parameters".into(), elements.into());
    }
    pretty(&json!({ "metadata": metadata, "weight_map": weight_map }))
}

/// JSON as the model library writes it: keys sorted, indented by two, a line break at the end.
pub(super) fn pretty(value: &Value) -> Vec<u8> {
    fn sorted(value: &Value) -> Value {
        match value {
            Value::Object(map) => {
                let ordered: BTreeMap<_, _> = map.iter().collect();
                Value::Object(
                    ordered
                        .into_iter()
                        .map(|(key, value)| (key.clone(), sorted(value)))
                        .collect(),
                )
            }
            Value::Array(items) => Value::Array(items.iter().map(sorted).collect()),
            other => other.clone(),
        }
    }
    let mut text = format!("{:#}", sorted(value));
    text.push('\n');
    text.into_bytes()
}
