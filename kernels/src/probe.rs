//! An optional observer of a forward pass.

use std::cell::RefCell;
use std::collections::BTreeMap;

use candle_core::Tensor;

use crate::Routes;

/// Records named tensors and routes of one forward pass. Parity tests, routing pictures and load statistics read it.
///
/// Every forward takes `Option<&Probe>`; `None` costs nothing.
#[derive(Default)]
pub struct Probe {
    tensors: RefCell<BTreeMap<String, Tensor>>,
    routes: RefCell<BTreeMap<String, Routes>>,
}

impl Probe {
    /// An empty probe.
    pub fn new() -> Self {
        Self::default()
    }

    /// Records a tensor; the last one of a name stays.
    pub fn tensor(&self, name: impl Into<String>, tensor: &Tensor) {
        self.tensors.borrow_mut().insert(name.into(), tensor.clone());
    }

    /// Records the routes of a sparse layer.
    pub fn routes(&self, name: impl Into<String>, routes: &Routes) {
        self.routes.borrow_mut().insert(name.into(), routes.clone());
    }

    /// The tensors recorded, by name.
    pub fn tensors(&self) -> BTreeMap<String, Tensor> {
        self.tensors.borrow().clone()
    }

    /// The routes recorded, by name.
    pub fn all_routes(&self) -> BTreeMap<String, Routes> {
        self.routes.borrow().clone()
    }
}
