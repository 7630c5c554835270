package awskms

import (
	"testing"
	"time"

	"github.com/snapferry/snapferry/internal/kms/kmstest"
)

// testConfig is one for the fake service that does not wait long between attempts.
func testConfig(t testing.TB, s *fakeService) Config {
	t.Helper()
	who, err := Static(fakeAccess, fakeSecret, "")
	if err != nil {
		t.Fatal(err)
	}
	return Config{
		Region: fakeRegion, Endpoint: s.url(), Credentials: who,
		Attempts: 6, MaxBackoff: 20 * time.Millisecond, Poll: time.Millisecond,
	}
}

func open(t testing.TB, s *fakeService, change ...func(*Config)) *Driver {
	t.Helper()
	cfg := testConfig(t, s)
	for _, c := range change {
		c(&cfg)
	}
	d, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func TestConformance(t *testing.T) {
	for what, name := range map[string]func(id string) string{
		"ids":  func(id string) string { return id },
		"arns": func(id string) string { return fakeArn + id },
	} {
		t.Run(what, func(t *testing.T) {
			kmstest.Conform(t, func(t *testing.T) *kmstest.Harness {
				s := newFake(t)
				state := func(key, state string) { s.set(func() { s.keys[key[len(key)-36:]].state = state }) }
				return &kmstest.Harness{
					Driver: open(t, s), Key: name(keyOne), Other: name(keyTwo), Missing: name(keyMissing), Binds: true,
					Disable: func(key string) { state(key, "Disabled") },
					Enable:  func(key string) { state(key, "Enabled") },
					Down:    s.stop,
					Up:      s.up,
					Fail:    func(n int) { s.set(func() { s.fail = n }) },
					Hang:    func() { s.set(func() { s.hang = make(chan struct{}) }) },
					Deny:    func() { s.set(func() { s.deny = true }) },
				}
			})
		})
	}
}
