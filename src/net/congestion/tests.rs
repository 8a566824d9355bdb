//! What the controller does by itself, and what comes of it on links whose speed changes.

use std::time::Duration;

use super::*;

mod moves;

#[test]
fn a_new_path_starts_afresh_and_old_losses_do_not_touch_it() {
    let (epoch, start) = (Arc::new(PathEpoch::default()), Instant::now());
    let config = Arc::new(PerPathConfig::new(Arc::clone(&epoch)));
    let mut controller = config.build(start, 1200);
    let initial = controller.window();
    controller.on_sent(start, 10_000, 9);
    controller.on_congestion_event(start + Duration::from_millis(50), start, false, 1200);
    assert!(controller.window() < initial);
    controller.on_sent(start + Duration::from_millis(60), 3000, 12);
    epoch.advance();
    // 8800 bytes of the old book are still under way
    assert_eq!(controller.window(), 11_800 + initial);
    let later = start + Duration::from_millis(100);
    controller.on_sent(later, 1200, 13);
    controller.on_congestion_event(later, start, true, 8_800);
    assert_eq!(controller.window(), 3000 + initial);
    controller.on_end_acks(later, 1200, false, Some(13));
    assert_eq!(controller.window(), 1200 + initial);
}
