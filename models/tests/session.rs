//! Sessions of Time-MoE: new values cost themselves alone, and a scale that no longer fits is renewed.

use candle_core::{Device, IndexOp, Result, Tensor};
use moesaic_kernels::Params;
use moesaic_models::time_moe::{Config, Normalisation, TimeMoe};

fn model() -> TimeMoe {
    let json = r#"{"model_type": "time_moe", "hidden_size": 16, "intermediate_size": 16, "horizon_lengths": [1, 4],
                   "num_hidden_layers": 2, "num_attention_heads": 2, "num_experts": 4, "num_experts_per_tok": 2,
                   "initializer_range": 0.3}"#;
    TimeMoe::new(Config::from_json(json).unwrap(), &Params::init(2, &Device::Cpu)).unwrap()
}

fn wave(n: usize) -> Vec<f32> {
    (0..n).map(|t| 5.0 + (t as f32 * 0.9).sin() + (t as f32 * 0.41).cos()).collect()
}

#[test]
fn new_values_cost_themselves_alone_and_change_nothing() -> Result<()> {
    let (model, all) = (model(), wave(60));
    let mut session = model.session(&all[..40], 100)?;
    let norm = session.normalisation();
    let costs = [&all[40..41], &[], &all[41..46], &all[46..]].map(|new| model.observe(&mut session, new).unwrap());
    assert_eq!(costs, [1, 0, 5, 14]);
    assert_eq!((session.values(), session.normalisation()), (&all[..], norm));
    let got = model.forecast_session(&session, 11)?;
    assert_eq!(got, model.forecast_session(&session, 11)?, "a forecast leaves the session where it is");
    let normed: Vec<f32> = all.iter().map(|&v| norm.apply(v)).collect();
    let whole = model.generate(&Tensor::from_vec(normed, (1, 60), &Device::Cpu)?, None, 11)?.i(0)?.to_vec1::<f32>()?;
    for (a, b) in got.iter().zip(whole) {
        assert!((a - norm.invert(b)).abs() < 1e-4, "{a} {}", norm.invert(b));
    }
    Ok(())
}

#[test]
fn a_session_is_renewed_when_it_is_full_or_its_scale_is_off() -> Result<()> {
    let (model, all) = (model(), wave(70));
    let mut session = model.session(&all[..60], 64)?;
    assert_eq!(model.observe(&mut session, &all[60..64])?, 4);
    // Three quarters of 64, scaled by themselves.
    assert_eq!(model.observe(&mut session, &all[64..65])?, 48);
    assert_eq!(session.values(), &all[17..65]);
    assert_eq!(session.normalisation(), Normalisation::of(&all[17..65]));
    assert_eq!(model.observe(&mut session, &[9.0, 9.5, 10.0, 10.5, 11.0])?, 53);
    let before = session.values().to_vec();
    assert!(model.observe(&mut session, &[1.0, f32::NAN]).is_err());
    assert_eq!(session.values(), before);
    assert_eq!(model.session(&all, 1)?.values(), &all[69..]);
    assert!(model.session(&[], 4).is_err() && model.session(&all, 0).is_err());
    assert!(model.forecast_session(&session, 0).is_err());
    Ok(())
}
