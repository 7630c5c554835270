package layer

import (
	"errors"
	"sync"
	"testing"
	"testing/synctest"
)

// TestGroup proves that whoever calls while a run is under way gets one that
// begins later, that all of them share it, and that each gets its own error.
func TestGroup(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g group
		errs := []error{errors.New("first"), errors.New("second"), nil}
		runs := 0
		hold := make(chan struct{})
		fn := func() error {
			err := errs[runs]
			runs++
			<-hold
			return err
		}
		var wg sync.WaitGroup
		call := func(want error) {
			if got := g.do(fn); got != want {
				t.Errorf("got %v, want %v", got, want)
			}
		}
		wg.Go(func() { call(errs[0]) })
		synctest.Wait()
		for range 50 {
			wg.Go(func() { call(errs[1]) })
		}
		synctest.Wait()
		if begun, busy := g.state(); runs != 1 || begun != 1 || !busy {
			t.Errorf("with one under way: got %d runs, %d begun, busy %v", runs, begun, busy)
		}
		hold <- struct{}{}
		synctest.Wait()
		if runs != 2 {
			t.Errorf("50 callers: got %d runs, want one more", runs)
		}
		wg.Go(func() { call(errs[2]) })
		synctest.Wait()
		close(hold)
		wg.Wait()
		if begun, busy := g.state(); runs != 3 || begun != 3 || busy {
			t.Errorf("at the end: got %d runs, %d begun, busy %v", runs, begun, busy)
		}
	})
}
