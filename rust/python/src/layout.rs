//! `HostLayout` and `DeviceCapacity`: plain numbers.

use hisparse_core::LayoutShape;
use pyo3::prelude::*;

use crate::errors::raise;
use crate::numbers::Number;

#[pyclass(module = "hisparse_sidecar._core", frozen)]
pub(crate) struct HostLayout {
    pub(crate) core: hisparse_core::HostLayout,
}

#[pymethods]
impl HostLayout {
    #[new]
    fn new(
        num_layers: Number,
        num_anchors: Number,
        kv_row_bytes: Number,
        index_row_bytes: Number,
        num_pages: Number,
    ) -> PyResult<Self> {
        let shape = LayoutShape {
            num_layers: num_layers.to("num_layers")?,
            num_anchors: num_anchors.to("num_anchors")?,
            kv_row_bytes: kv_row_bytes.to("kv_row_bytes")?,
            index_row_bytes: index_row_bytes.to("index_row_bytes")?,
            num_pages: num_pages.to("num_pages")?,
        };
        hisparse_core::HostLayout::new(shape).map(|core| Self { core }).map_err(raise)
    }

    #[getter]
    fn num_bytes(&self) -> usize {
        self.core.num_bytes()
    }

    #[getter]
    fn page_bytes(&self) -> usize {
        self.core.page_bytes()
    }

    #[getter]
    fn num_layers(&self) -> usize {
        self.core.shape().num_layers
    }

    #[getter]
    fn num_anchors(&self) -> usize {
        self.core.shape().num_anchors
    }

    #[getter]
    fn kv_row_bytes(&self) -> usize {
        self.core.shape().kv_row_bytes
    }

    #[getter]
    fn index_row_bytes(&self) -> usize {
        self.core.shape().index_row_bytes
    }

    #[getter]
    fn num_pages(&self) -> u32 {
        self.core.shape().num_pages
    }

    fn kv_offset(&self, layer: Number) -> PyResult<usize> {
        self.core.kv_offset(layer.to("layer")?).map_err(raise)
    }

    fn index_offset(&self, anchor: Number) -> PyResult<usize> {
        self.core.index_offset(anchor.to("anchor")?).map_err(raise)
    }

    fn pooled_offset(&self, anchor: Number) -> PyResult<usize> {
        self.core.pooled_offset(anchor.to("anchor")?).map_err(raise)
    }

    fn __repr__(&self) -> String {
        let shape = self.core.shape();
        format!(
            "HostLayout(num_layers={}, num_anchors={}, kv_row_bytes={}, index_row_bytes={}, \
             num_pages={})",
            shape.num_layers,
            shape.num_anchors,
            shape.kv_row_bytes,
            shape.index_row_bytes,
            shape.num_pages
        )
    }
}

#[pyclass(module = "hisparse_sidecar._core", frozen, get_all)]
pub(crate) struct DeviceCapacity {
    slots: u32,
    window_slots: u32,
    table_tokens: u32,
    table_blocks: u32,
    pooled_keys: u32,
    sequences: u32,
}

#[pymethods]
impl DeviceCapacity {
    #[new]
    fn new(
        slots: Number,
        window_slots: Number,
        table_tokens: Number,
        table_blocks: Number,
        pooled_keys: Number,
        sequences: Number,
    ) -> PyResult<Self> {
        Ok(Self {
            slots: slots.to("slots")?,
            window_slots: window_slots.to("window_slots")?,
            table_tokens: table_tokens.to("table_tokens")?,
            table_blocks: table_blocks.to("table_blocks")?,
            pooled_keys: pooled_keys.to("pooled_keys")?,
            sequences: sequences.to("sequences")?,
        })
    }

    fn __repr__(&self) -> String {
        format!("{:?}", self.core())
    }
}

impl DeviceCapacity {
    pub(crate) fn core(&self) -> hisparse_core::DeviceCapacity {
        hisparse_core::DeviceCapacity {
            slots: self.slots,
            window_slots: self.window_slots,
            table_tokens: self.table_tokens,
            table_blocks: self.table_blocks,
            pooled_keys: self.pooled_keys,
            sequences: self.sequences,
        }
    }
}
