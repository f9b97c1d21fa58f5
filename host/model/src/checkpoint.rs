//! A checkpoint folder: `config.json` beside `model.safetensors`, or beside shards and their index.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs,
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use packhost_tensor::Tensor;
use rayon::prelude::*;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::{
    config::Config,
    digest,
    error::{Error, IndexProblem, Result},
    header::{Entry, UniqueMap},
    shard::Shard,
    weights::{TensorMeta, Weights, find_ties, sort},
};

/// File of a checkpoint in one piece.
pub(crate) const SINGLE_FILE: &str = "model.safetensors";
/// Index of a checkpoint in shards.
pub(crate) const INDEX_FILE: &str = "model.safetensors.index.json";
/// The configuration.
pub(crate) const CONFIG_FILE: &str = "config.json";

/// An open checkpoint. Every header is checked when it opens; the data is mapped and read when it is touched.
#[derive(Debug)]
pub struct Checkpoint {
    dir: PathBuf,
    config: Config,
    config_json: Value,
    shards: Vec<Shard>,
    /// `metadata` of the index file, when there is one.
    index_metadata: Option<Map<String, Value>>,
    tensors: Vec<TensorMeta>,
    /// Shard and entry of each tensor.
    places: HashMap<String, (usize, usize)>,
}

/// The index file's JSON.
#[derive(Deserialize)]
struct Index {
    /// Absent or null in some files.
    metadata: Option<Map<String, Value>>,
    weight_map: UniqueMap,
}

impl Checkpoint {
    /// Opens the checkpoint in `dir`. Where both a single file and an index are present the single file counts, as in
    /// the model library.
    ///
    /// # Errors
    /// When a file is missing, a header or the index malformed, or the configuration of the wrong kind. A network that
    /// cannot be run is no error here, see [`Config::served`].
    pub fn open(dir: &Path) -> Result<Arc<Self>> {
        let config_path = dir.join(CONFIG_FILE);
        if !dir.is_dir() {
            return Err(Error::NoFolder { path: dir.into() });
        }
        if !config_path.exists() {
            let problem = format!("{CONFIG_FILE} is missing; is this the folder of a checkpoint?");
            return Err(Error::Checkpoint {
                path: dir.into(),
                problem,
            });
        }
        let config_json = read_json(&config_path)?;
        let config = Config::parse(&config_json, &config_path)?;
        let (shards, index) = open_shards(dir)?;

        let mut tensors = Vec::new();
        let mut places = HashMap::new();
        for (shard_index, shard) in shards.iter().enumerate() {
            for (entry_index, entry) in shard.header().entries.iter().enumerate() {
                // A tensor that the index places in another shard is a shadow: an overlay written beside old shards.
                let shadowed = index.as_ref().is_some_and(|index| {
                    index
                        .weight_map
                        .0
                        .get(&entry.name)
                        .is_none_or(|name| name != shard.name())
                });
                if !shadowed {
                    tensors.push(TensorMeta::new(&entry.name, entry.dtype, &entry.shape));
                    places.insert(entry.name.clone(), (shard_index, entry_index));
                }
            }
        }
        if tensors.is_empty() {
            return Err(Error::Checkpoint {
                path: dir.into(),
                problem: "it holds no tensors".into(),
            });
        }
        sort(&mut tensors);
        let mut checkpoint = Self {
            dir: dir.into(),
            config,
            config_json,
            shards,
            index_metadata: index.map(|index| index.metadata.unwrap_or_default()),
            tensors: Vec::new(),
            places,
        };
        find_ties(&mut tensors, &checkpoint.config, |name| {
            checkpoint.tensor(name)
        })?;
        checkpoint.tensors = tensors;
        Ok(Arc::new(checkpoint))
    }

    /// The folder, as it was given.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The configuration, parsed.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The configuration as JSON.
    pub fn config_json(&self) -> &Value {
        &self.config_json
    }

    /// The safetensors files, by name.
    pub fn shards(&self) -> &[Shard] {
        &self.shards
    }

    /// Whether the checkpoint has an index file, even if it lists only one shard.
    pub fn is_sharded(&self) -> bool {
        self.index_metadata.is_some()
    }

    pub(crate) fn index_metadata(&self) -> Option<&Map<String, Value>> {
        self.index_metadata.as_ref()
    }

    /// Every stored tensor, in module order.
    pub fn tensors(&self) -> &[TensorMeta] {
        &self.tensors
    }

    /// The elements of the tensor called `name`, borrowed from the mapped file.
    ///
    /// # Errors
    /// When there is no such tensor.
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        let (shard, entry) = self.locate(name)?;
        shard.tensor(entry)
    }

    /// Lets go of the resident pages of the tensor called `name`; see [`Shard::release`]. Unknown names are ignored.
    pub fn release(&self, name: &str) {
        if let Ok((shard, entry)) = self.locate(name) {
            shard.release(entry);
        }
    }

    /// Starts reading the tensor called `name`; see [`Shard::prefetch`]. Unknown names are ignored.
    pub fn prefetch(&self, name: &str) {
        if let Ok((shard, entry)) = self.locate(name) {
            shard.prefetch(entry);
        }
    }

    /// Lets go of all resident pages.
    pub fn release_all(&self) {
        self.shards.iter().for_each(Shard::release_all);
    }

    /// Where the tensor called `name` is stored.
    ///
    /// # Errors
    /// When there is no such tensor.
    pub fn locate(&self, name: &str) -> Result<(&Shard, &Entry)> {
        self.places
            .get(name)
            .and_then(|&(shard, entry)| {
                let shard = self.shards.get(shard)?;
                Some((shard, shard.header().entries.get(entry)?))
            })
            .ok_or_else(|| Error::NoTensor {
                name: name.into(),
                path: self.dir.clone(),
            })
    }

    /// SHA-256 of every shard's file, hexadecimal, by shard name. Shards are read in parallel, in large pieces, without
    /// touching the mappings.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn shard_digests(&self) -> Result<BTreeMap<String, String>> {
        self.shards
            .par_iter()
            .map(|shard| Ok((shard.name().to_owned(), digest::file(shard.path())?)))
            .collect()
    }

    /// SHA-256 of every tensor's stored bytes, hexadecimal, by tensor name.
    ///
    /// # Errors
    /// Never for a checkpoint that opened.
    pub fn tensor_digests(&self) -> Result<BTreeMap<String, String>> {
        self.tensors
            .par_iter()
            .map(|meta| {
                let digest = digest::bytes(self.tensor(&meta.name)?.bytes());
                self.release(&meta.name);
                Ok((meta.name.clone(), digest))
            })
            .collect()
    }

    /// One digest for all weights, see [`digest::of_weights`]. How tensors are spread over shards does not matter.
    ///
    /// # Errors
    /// Never for a checkpoint that opened.
    pub fn fingerprint(&self) -> Result<String> {
        Ok(self.fingerprint_of(&self.tensor_digests()?))
    }

    /// The same, where the digests of all tensors are known.
    pub fn fingerprint_of(&self, digests: &BTreeMap<String, String>) -> String {
        let tensors = digests.iter().filter_map(|(name, digest)| {
            let meta = self.meta(name)?;
            Some((
                name.as_str(),
                meta.dtype.name(),
                &*meta.shape,
                digest.as_str(),
            ))
        });
        digest::of_weights(tensors)
    }
}

impl Weights for Checkpoint {
    fn config(&self) -> &Config {
        self.config()
    }

    fn config_json(&self) -> &Value {
        self.config_json()
    }

    fn tensors(&self) -> &[TensorMeta] {
        self.tensors()
    }

    fn tensor(&self, name: &str) -> Result<Tensor> {
        self.tensor(name)
    }
}

/// Reads a JSON file that must be there.
fn read_json(path: &Path) -> Result<Value> {
    let bytes = fs::read(path).map_err(Error::io("read", path))?;
    serde_json::from_slice(&bytes).map_err(|error| Error::Config {
        path: path.into(),
        field: String::new(),
        problem: format!("it is not JSON: {error}"),
    })
}

/// The shards in the order of their names, and the index if there is one.
fn open_shards(dir: &Path) -> Result<(Vec<Shard>, Option<Index>)> {
    if dir.join(SINGLE_FILE).exists() {
        return Ok((vec![Shard::open(dir, SINGLE_FILE)?], None));
    }
    let index_path = dir.join(INDEX_FILE);
    if !index_path.exists() {
        let problem = if dir.join("pytorch_model.bin").exists()
            || dir.join("pytorch_model.bin.index.json").exists()
        {
            "its weights are pickled (pytorch_model.bin), which is not served; save it as safetensors".into()
        } else {
            format!("neither {SINGLE_FILE} nor {INDEX_FILE} is there")
        };
        return Err(Error::Checkpoint {
            path: dir.into(),
            problem,
        });
    }
    let refuse = |problem| Error::Index {
        path: index_path.clone(),
        problem,
    };
    let bytes = fs::read(&index_path).map_err(Error::io("read", &index_path))?;
    let index: Index = serde_json::from_slice(&bytes)
        .map_err(|error| refuse(IndexProblem::Json(error.to_string())))?;
    let shards = check_shards(dir, &index).map_err(|failure| match failure {
        Failure::Index(problem) => refuse(problem),
        Failure::Shard(error) => error,
    })?;
    Ok((shards, Some(index)))
}

/// Either the index is wrong, or one of its shards.
enum Failure {
    Index(IndexProblem),
    Shard(Error),
}

fn check_shards(dir: &Path, index: &Index) -> Result<Vec<Shard>, Failure> {
    let weight_map = &index.weight_map.0;
    if weight_map.is_empty() {
        return Err(Failure::Index(IndexProblem::Empty));
    }
    let mut first_tensors = BTreeMap::new();
    for (tensor, shard) in weight_map {
        let plain = !shard.is_empty()
            && Path::new(shard)
                .components()
                .all(|part| matches!(part, Component::Normal(_)));
        if !plain {
            return Err(Failure::Index(IndexProblem::ShardPath {
                tensor: tensor.clone(),
                shard: shard.clone(),
            }));
        }
        first_tensors.entry(shard).or_insert(tensor);
    }
    let mut shards = Vec::new();
    for (shard, tensor) in first_tensors {
        if !dir.join(shard).exists() {
            return Err(Failure::Index(IndexProblem::NoShard {
                shard: shard.clone(),
                tensor: tensor.clone(),
            }));
        }
        shards.push(Shard::open(dir, shard).map_err(Failure::Shard)?);
    }
    let mut stored = HashSet::new();
    for shard in &shards {
        for entry in &shard.header().entries {
            let Some(place) = weight_map.get(&entry.name) else {
                let (shard, tensor) = (shard.name().to_owned(), entry.name.clone());
                return Err(Failure::Index(IndexProblem::Unlisted { shard, tensor }));
            };
            if place == shard.name() {
                stored.insert(entry.name.as_str());
            }
        }
    }
    match weight_map
        .iter()
        .find(|(tensor, _)| !stored.contains(tensor.as_str()))
    {
        Some((tensor, shard)) => Err(Failure::Index(IndexProblem::NoTensor {
            tensor: tensor.clone(),
            shard: shard.clone(),
        })),
        None => Ok(shards),
    }
}
