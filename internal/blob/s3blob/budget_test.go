package s3blob

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBudget(20)
		taken := func(cost uint) bool {
			t.Helper()
			_, err := b.GetToken(t.Context(), cost)
			return err == nil
		}
		release, err := b.GetToken(t.Context(), 5)
		if err != nil || !taken(10) || taken(10) {
			t.Fatalf("a budget of 20 gives 5 (%v) and 10, and not 10 more", err)
		}
		if err := release(); err != nil || !taken(10) || taken(5) {
			t.Errorf("what was given back cannot be taken again: %v", err)
		}
		<-time.After(time.Second)
		if !taken(10) || taken(1) {
			t.Error("a second does not give 10 tokens")
		}
		<-time.After(time.Hour)
		if !taken(20) || taken(1) {
			t.Error("the budget does not fill up to 20")
		}
	})
}
