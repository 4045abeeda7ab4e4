//! Choices and routes.

use candle_core::{Device, Result, Tensor};

use super::emulator::{Emulator, emulator, normal};
use crate::Modality;
use crate::cuda::launch::{Values, routing as launch};
use crate::rng::Rng;
use crate::routers::{Affinity, Capacity, ExpertChoice, ExpertGroup, GroupLimit, Rating, Router, SecondChoice, choose};
use crate::routes::{Plan, RouteInput};

/// Choices as the host has them.
fn lists(choices: &[u32], k: usize) -> Vec<Vec<u32>> {
    choices.chunks_exact(k).map(|row| row.iter().copied().filter(|&e| e != u32::MAX).collect()).collect()
}

/// The same as the device has them.
fn rows(lists: &[Vec<u32>], k: usize) -> Vec<u32> {
    lists.iter().flat_map(|row| (0..k).map(|s| row.get(s).copied().unwrap_or(u32::MAX))).collect()
}

#[test]
fn top_k_chooses_as_the_host_does() -> Result<()> {
    let Some(gpu) = emulator() else { return Ok(()) };
    let mut rng = Rng::new(1);
    for (tokens, experts, k, groups) in [
        (7, 4, 2, None),
        (33, 64, 8, None),
        (5, 1, 1, None),
        (9, 130, 130, None),
        (21, 32, 6, Some(GroupLimit { groups: 8, keep: 3 })),
        (6, 8, 2, Some(GroupLimit { groups: 8, keep: 2 })),
        (3, 256, 8, Some(GroupLimit { groups: 8, keep: 4 })),
    ] {
        for two in [false, true] {
            let mut scores = normal(&mut rng, tokens * experts);
            // Ties, zeros of both signs among them.
            for v in scores.iter_mut() {
                if rng.chance(0.4) {
                    *v = [0.0, -0.0, 1.0, -1.0][rng.below(4)];
                }
            }
            let mask: Vec<f32> = (0..tokens).map(|_| if rng.chance(0.2) { 0.0 } else { 1.0 }).collect();
            let (choices, broken) = (gpu.empty::<u32>(tokens * k), gpu.put(&[0u32]));
            let shape = [tokens, experts, k];
            let (s, m) = (gpu.put(&scores), gpu.put(&mask));
            gpu.run(&launch::top_k(s, Some(m), choices, broken, shape, groups, two)?);
            let tensor = Tensor::from_vec(scores, (tokens, experts), &Device::Cpu)?;
            let mask = Tensor::from_vec(mask, tokens, &Device::Cpu)?;
            let expected = choose(&tensor, k, groups, if two { Rating::TwoBest } else { Rating::Best }, Some(&mask))?;
            assert_eq!(lists(&gpu.get(choices), k), expected, "{shape:?} {groups:?} {two}");
            assert_eq!(gpu.get::<u32>(broken), [0]);
        }
    }
    let (choices, broken) = (gpu.empty::<u32>(2), gpu.put(&[0u32]));
    let scores = gpu.put(&[0.0, f32::NAN, 1.0, 2.0]);
    gpu.run(&launch::top_k(scores, None, choices, broken, [2, 2, 1], None, false)?);
    assert_eq!(gpu.get::<u32>(broken), [1]);
    assert!(launch::top_k(scores, None, choices, broken, [2, 2, 3], None, false).is_err());
    assert!(launch::top_k(scores, None, choices, broken, [2, 3, 1], None, false).is_err());
    Ok(())
}

/// Sorts choices on the device: offsets, token, which choice it is, and the route of each choice.
fn sort(gpu: &Emulator, choices: Values, shape: [usize; 3]) -> Result<[Values; 4]> {
    let [tokens, experts, k] = shape;
    let total = tokens * k;
    let scratch = gpu.empty::<u32>(launch::sort_scratch(total, experts));
    let [token, choice, route] = [(); 3].map(|()| gpu.empty::<u32>(total));
    let offsets = gpu.empty::<u32>(experts + 1);
    for launch in launch::sort(choices, [scratch, offsets, token, choice, route], shape)? {
        gpu.run(&launch);
    }
    Ok([offsets, token, choice, route])
}

#[test]
fn routes_are_sorted_as_the_host_sorts_them() -> Result<()> {
    let Some(gpu) = emulator() else { return Ok(()) };
    let mut rng = Rng::new(2);
    for (tokens, experts, k) in [(1, 1, 1), (40, 3, 2), (700, 5, 3), (300, 130, 2), (64, 8, 8)] {
        let choices: Vec<Vec<u32>> = (0..tokens)
            .map(|_| {
                let mut all: Vec<u32> = (0..experts as u32).collect();
                let count = if rng.chance(0.2) { 0 } else { k.min(experts) };
                (0..count).map(|_| all.swap_remove(rng.below(all.len()))).collect()
            })
            .collect();
        let expected = Plan::new(experts, &choices)?;
        let expected = expected.lists()?;
        let [offsets, token, choice, route] = sort(gpu, gpu.put(&rows(&choices, k)), [tokens, experts, k])?;
        let bounds: Vec<usize> = gpu.get::<u32>(offsets).into_iter().map(|o| o as usize).collect();
        assert_eq!(bounds, expected.offsets);
        assert_eq!(gpu.get::<u32>(token)[..expected.token.len()], expected.token);
        let slot = gpu.get::<u32>(choice).into_iter().take(expected.slot.len()).map(|c| c % k as u32);
        assert_eq!(slot.collect::<Vec<_>>(), expected.slot);
        let by_token: Vec<u32> = gpu.get::<u32>(route).into_iter().filter(|&r| r != u32::MAX).collect();
        assert_eq!(by_token, expected.by_token);
    }
    Ok(())
}

#[test]
fn what_the_device_decides_is_what_the_host_does() -> Result<()> {
    let Some(gpu) = emulator() else { return Ok(()) };
    let mut rng = Rng::new(4);
    let grouped = Some(GroupLimit { groups: 4, keep: 2 });
    for (tokens, experts, k, groups, two) in
        [(1, 1, 1, None, false), (300, 8, 2, None, false), (70, 64, 8, grouped, true), (257, 5, 5, None, false)]
    {
        let scores = normal(&mut rng, tokens * experts);
        let decision = launch::Decision { tokens, experts, k };
        let (given, out) = (gpu.put(&scores), gpu.empty::<u32>(decision.len()));
        for launch in decision.launches(given, out, groups, two)? {
            gpu.run(&launch);
        }
        let scores = Tensor::from_vec(scores, (tokens, experts), &Device::Cpu)?;
        let expected = choose(&scores, k, groups, if two { Rating::TwoBest } else { Rating::Best }, None)?;
        let plan = Plan::new(experts, &expected)?;
        let plan = plan.lists()?;
        let all = gpu.get::<u32>(out);
        let [token, by_token, choice, choices, offsets, start, broken, _] =
            decision.parts().map(|(at, len)| all[at..at + len].to_vec());
        let wide = |list: Vec<u32>| list.into_iter().map(|v| v as usize).collect::<Vec<_>>();
        assert_eq!(lists(&choices, k), expected);
        assert_eq!((token, by_token), (plan.token.clone(), plan.by_token.clone()));
        assert_eq!((wide(offsets), wide(start)), (plan.offsets.clone(), plan.token_offsets.clone()));
        // Each route is the choice that went there.
        assert!(choice.iter().enumerate().all(|(r, &c)| plan.by_token[c as usize] == r as u32));
        assert_eq!(broken, [0]);
    }
    Ok(())
}

#[test]
fn broken_scores_leave_every_token_its_routes() -> Result<()> {
    let Some(gpu) = emulator() else { return Ok(()) };
    let decision = launch::Decision { tokens: 2, experts: 4, k: 3 };
    let nan = f32::NAN;
    let (scores, out) =
        (gpu.put(&[0.0, nan, nan, nan, 1.0, f32::NEG_INFINITY, nan, 2.0]), gpu.empty::<u32>(decision.len()));
    for launch in decision.launches(scores, out, None, false)? {
        gpu.run(&launch);
    }
    let all = gpu.get::<u32>(out);
    let part = |i: usize| decision.parts()[i];
    let (choices, broken) = (part(3), part(6));
    assert_eq!(all[choices.0..][..choices.1], [0, 1, 2, 3, 0, 1]);
    assert_eq!(all[broken.0], 1);
    Ok(())
}

#[test]
fn experts_choose_as_they_do_on_the_host() -> Result<()> {
    let Some(gpu) = emulator() else { return Ok(()) };
    let mut rng = Rng::new(3);
    for (tokens, text, image, factor, ties) in
        [(10, 2, 3, 1.0, false), (600, 4, 2, 1.0, true), (33, 1, 1, 0.3, true), (5, 2, 2, 3.0, false)]
    {
        let experts = text + image;
        let mut logits = normal(&mut rng, tokens * experts);
        if ties {
            // One zero: a product with the identity knows no other.
            logits.iter_mut().for_each(|v| *v = (*v * 2.0).round() + 0.0);
        }
        let modality: Vec<Modality> =
            (0..tokens).map(|_| if rng.chance(0.4) { Modality::Image } else { Modality::Text }).collect();
        // The router's logits are the tokens themselves.
        let mut identity = vec![0f32; experts * experts];
        (0..experts).for_each(|e| identity[e * experts + e] = 1.0);
        let groups = vec![
            ExpertGroup { modality: Some(Modality::Text), experts: text },
            ExpertGroup { modality: Some(Modality::Image), experts: image },
        ];
        let affinity = Affinity { weight: Tensor::from_vec(identity, (experts, experts), &Device::Cpu)?, groups };
        let x = Tensor::from_vec(logits.clone(), (tokens, experts), &Device::Cpu)?;
        let router = ExpertChoice { affinity, factor, noise: None };
        let expected = router.route(&RouteInput { modality: Some(&modality), ..RouteInput::new(&x) })?;
        let members = |m: Modality| modality.iter().filter(|&&of| of == m).count();
        let of_text = |e: usize| e < text;
        let capacity: Vec<u32> = (0..experts)
            .map(|e| {
                let (count, of) =
                    if of_text(e) { (members(Modality::Text), text) } else { (members(Modality::Image), image) };
                router.capacity(count, of) as u32
            })
            .collect();
        let may = |t: usize, e: usize| f32::from(of_text(e) == (modality[t] == Modality::Text));
        let eligible: Vec<f32> = (0..tokens * experts).map(|i| may(i / experts, i % experts)).collect();
        let choices = gpu.empty::<u32>(tokens * experts);
        let values =
            [gpu.put(&logits), gpu.put(&eligible), gpu.put(&capacity), gpu.empty::<u8>(tokens * experts), choices];
        for launch in launch::expert_choice(values, [tokens, experts])? {
            gpu.run(&launch);
        }
        assert_eq!(lists(&gpu.get(choices), experts), expected.choices()?, "{tokens} {text} {image} {factor}");
    }
    Ok(())
}

#[test]
fn no_expert_takes_more_than_it_has_room_for() -> Result<()> {
    let Some(gpu) = emulator() else { return Ok(()) };
    let mut rng = Rng::new(4);
    for (tokens, experts, k, factor) in [(50, 4, 2, 0.7), (600, 3, 1, 0.5), (9, 4, 2, 2.0)] {
        let weight = Tensor::from_vec(normal(&mut rng, experts * 6), (experts, 6), &Device::Cpu)?;
        let x = Tensor::from_vec(normal(&mut rng, tokens * 6), (tokens, 6), &Device::Cpu)?;
        let router = Capacity { weight, k, factor, min_capacity: 1, second: SecondChoice::Best };
        let routes = router.route(&RouteInput::new(&x))?;
        let Some(limit) = routes.limit() else { panic!("no limit") };
        let choices = gpu.put(&rows(&limit.chosen, k));
        let across = gpu.empty::<u32>(tokens * k);
        let shape = [tokens, experts, k];
        let places = |route, offsets| launch::limit(choices, [across, route, offsets], shape, limit.capacity);
        let of_all = (gpu.empty::<u32>(tokens * k), gpu.empty::<u32>(experts + 1));
        gpu.run(&places(of_all.0, of_all.1)?[0]);
        let [offsets, _, _, route] = sort(gpu, across, [tokens * k, experts, 1])?;
        gpu.run(&places(route, offsets)?[1]);
        assert_eq!(lists(&gpu.get(choices), k), routes.choices()?, "{shape:?}");
        let dropped = limit.chosen.iter().map(Vec::len).sum::<usize>() - routes.len();
        assert_eq!(dropped > 0, factor < 1.0);
    }
    Ok(())
}
