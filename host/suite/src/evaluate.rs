//! Comparing one subject with its baseline: measure both on the same windows, let the guards judge, put the report
//! together. The command `evaluate` and every task of a run go through here.

use std::collections::BTreeSet;
use std::sync::atomic::AtomicBool;

use packhost_measure::dataset::Dataset;
use packhost_measure::report::{
    self, EditIdentity, Judged, ModelIdentity, ReportInputs, StructuralFailure,
};
use packhost_measure::table::Table;
use packhost_measure::tiers::{MetricOptions, Policies};
use packhost_measure::windows::Windows;
use packhost_measure::{
    Baseline, FeatureMoments, MeasureRequest, Measured, Request, measure, needs_predictions,
};
use packhost_model::Weights;
use packhost_model::network::{HiddenCache, KeepPolicy, Reference};
use serde_json::Value;

use crate::Result;
use crate::guards::Guards;
use crate::toolbox::Toolbox;

/// What every evaluation of a run shares.
pub struct Evaluator<'a> {
    pub toolbox: &'a Toolbox,
    pub guards: &'a Guards,
    pub dataset: &'a Dataset,
    /// Time of the reports, RFC 3339.
    pub timestamp: &'a str,
    /// Bytes of hidden states to keep of a baseline, so that subjects start at their first changed layer.
    pub hidden_bytes: u64,
    pub cancel: &'a AtomicBool,
}

/// A baseline, measured on the windows of one seed.
pub struct MeasuredBaseline {
    pub windows: Windows,
    pub identity: ModelIdentity,
    pub requests: Vec<Request>,
    pub table: Table,
    reference: Option<Reference>,
    hidden: Option<HiddenCache>,
    moments: FeatureMoments,
}

/// A subject to evaluate.
pub struct SubjectInput<'a> {
    pub weights: &'a dyn Weights,
    /// The baseline's weights.
    pub base: &'a dyn Weights,
    pub identity: ModelIdentity,
    pub edit: EditIdentity,
    /// Names of the tensors that differ from the baseline.
    pub changed: BTreeSet<String>,
}

/// What came out.
pub struct Evaluation {
    pub report: Value,
    pub table: Table,
    pub judged: Vec<Judged>,
}

impl Evaluator<'_> {
    /// Measures a baseline.
    ///
    /// # Errors
    /// It cannot be run: a baseline that fails structurally is no baseline.
    pub fn baseline(
        &self,
        weights: &dyn Weights,
        identity: ModelIdentity,
        windows: Windows,
        requests: Vec<Request>,
    ) -> Result<MeasuredBaseline> {
        let keep = KeepPolicy {
            reference: true,
            hidden_bytes: self.hidden_bytes,
        };
        let measured = self.measure(weights, &windows, &requests, None, Some(keep))?;
        if let Some(message) = measured.structural_failure {
            return Err(crate::Error::BaselineFails {
                model: identity.model_id,
                message,
            });
        }
        let Measured {
            table,
            reference,
            hidden,
            moments,
            ..
        } = measured;
        Ok(MeasuredBaseline {
            windows,
            identity,
            requests,
            table,
            reference,
            hidden,
            moments,
        })
    }

    /// Measures a subject, lets the guards judge and makes the report.
    ///
    /// # Errors
    /// Measuring or a guard fails. A subject that cannot be run is no error: its report says so.
    pub fn subject(
        &self,
        baseline: &MeasuredBaseline,
        subject: &SubjectInput<'_>,
        policies: &Policies,
        metric: MetricOptions,
    ) -> Result<Evaluation> {
        let measured = self.against(baseline, subject, &baseline.requests)?;
        let failure = measured.structural_failure;
        // Only what is asked for is measured, of both models: rows that are there already stay.
        let mut known = (baseline.table.clone(), measured.table.clone());
        let mut more = |wanted: &[Request]| {
            let of_base = self.measure(subject.base, &baseline.windows, wanted, None, None)?;
            let of_subject = self.against(baseline, subject, wanted)?;
            known.0.copy_from(&of_base.table, |_, _| true);
            known.1.copy_from(&of_subject.table, |_, _| true);
            Ok(known.clone())
        };
        // Of a subject that cannot be run there are no predictions, so guards that look at them have nothing to judge.
        let may_judge = |guard: &str| {
            let needs =
                |request: &Request| request.guard == guard && needs_predictions(&request.quantity);
            failure.is_none() || !baseline.requests.iter().any(needs)
        };
        let tables = (&baseline.table, &measured.table);
        let judged = self
            .guards
            .judge(policies, &metric, tables, &may_judge, &mut more)?;
        let inputs = ReportInputs {
            timestamp: self.timestamp,
            host_version: env!("CARGO_PKG_VERSION"),
            device: "cpu",
            subject: &subject.identity,
            baseline: &baseline.identity,
            edit: &subject.edit,
            dataset: self.dataset,
            windows: &baseline.windows,
            baseline_table: &baseline.table,
            subject_table: &measured.table,
            policies,
            metric,
            guards: &judged,
        };
        let report = match &failure {
            None => report::build(&inputs)?,
            Some(message) => report::structural_failure(
                &inputs,
                &StructuralFailure {
                    kind: &subject.edit.name,
                    message,
                },
            ),
        };
        Ok(Evaluation {
            report,
            table: measured.table,
            judged,
        })
    }

    fn against(
        &self,
        baseline: &MeasuredBaseline,
        subject: &SubjectInput<'_>,
        requests: &[Request],
    ) -> Result<Measured> {
        let known = Baseline {
            weights: subject.base,
            table: &baseline.table,
            changed: &subject.changed,
            reference: baseline.reference.as_ref(),
            hidden: baseline.hidden.as_ref(),
            moments: Some(&baseline.moments),
        };
        self.measure(
            subject.weights,
            &baseline.windows,
            requests,
            Some(known),
            None,
        )
    }

    fn measure(
        &self,
        weights: &dyn Weights,
        windows: &Windows,
        requests: &[Request],
        baseline: Option<Baseline<'_>>,
        keep: Option<KeepPolicy>,
    ) -> Result<Measured> {
        let request = MeasureRequest {
            weights,
            device: &self.toolbox.device,
            windows,
            requests,
            baseline,
            keep,
            probe: Some(&|request, meta, tensor| {
                self.guards
                    .probe(request, meta, tensor, &self.toolbox.device)
            }),
            cancel: Some(self.cancel),
        };
        Ok(self.toolbox.device.install(|| measure(&request))?)
    }
}
