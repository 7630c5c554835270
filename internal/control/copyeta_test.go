package control

import (
	"math"
	"testing"
	"time"
)

// TestEstimatorBegin gives an estimator samples of copies that bring nothing at
// first, and then the same each second: the time before is no part of the rate.
func TestEstimatorBegin(t *testing.T) {
	const rate, total = 20e6, 134e6
	for _, quiet := range []time.Duration{0, 700 * time.Millisecond, 2500 * time.Millisecond, time.Minute} {
		for _, had := range []int64{0, 50e6} { // of earlier runs
			began := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
			end := began.Add(quiet + time.Duration(total/rate*float64(time.Second)))
			var e estimator
			for now := began; now.Before(end); now = now.Add(time.Second) {
				came := int64(max(now.Sub(began)-quiet, 0).Seconds() * rate)
				e.add(now, had+came)
				span := e.ends(now, total-came)
				if came == 0 {
					if span != nil {
						t.Errorf("quiet for %v: after %v, when nothing has come: got %v", quiet, now.Sub(began), span)
					}
					continue
				}
				left := end.Sub(now).Seconds()
				if span == nil {
					if came > 3*rate {
						t.Errorf("quiet for %v: after %v nobody knows the end", quiet, now.Sub(began))
					}
					continue
				}
				early, late := span.Earliest.Sub(now).Seconds(), span.Latest.Sub(now).Seconds()
				middle := (early + late - commit.Seconds()) / 2
				if early > left || late < left || 3*came > total && math.Abs(middle-left) > 0.2*left {
					t.Errorf("quiet for %v: with %.2f s left: got %.2f to %.2f", quiet, left, early, late)
				}
			}
		}
	}
}
