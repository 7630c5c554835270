package azurekms

import (
	"strings"
	"testing"
	"time"

	"github.com/snapferry/snapferry/internal/kms/kmstest"
)

func open(t testing.TB, s *fakeVault, change ...func(*Config)) *Driver {
	t.Helper()
	cfg := Config{
		Vault: s.url(), Credential: credential{s: s}, HTTPClient: s.client(),
		Attempts: 6, Backoff: time.Millisecond, MaxBackoff: 20 * time.Millisecond,
	}
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

// enable sets the state of all versions of a key.
func (s *fakeVault) enable(key string, on bool) {
	s.set(func() {
		for _, v := range s.keys[key[strings.LastIndexByte(key, '/')+1:]].versions {
			v.enabled = on
		}
	})
}

func TestConformance(t *testing.T) {
	for _, test := range []struct {
		name   string
		full   bool // keys are named by their identifiers
		strict bool // the service encrypts nothing with a key that is disabled
	}{{"names", false, false}, {"identifiers", true, true}} {
		t.Run(test.name, func(t *testing.T) {
			kmstest.Conform(t, func(t *testing.T) *kmstest.Harness {
				s := newFake(t)
				s.strict = test.strict
				name := func(key string) string {
					if test.full {
						return s.url() + "/keys/" + key
					}
					return key
				}
				return &kmstest.Harness{
					Driver: open(t, s), Key: name(keyOne), Other: name(keyTwo), Missing: name(keyMissing), Binds: true,
					Disable: func(key string) { s.enable(key, false) },
					Enable:  func(key string) { s.enable(key, true) },
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
