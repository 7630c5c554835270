package main

import (
	"bytes"
	"crypto/x509"
	"log/slog"
	"os"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/kms"
	"github.com/snapferry/snapferry/internal/kms/alikms"
	"github.com/snapferry/snapferry/internal/kms/transitkms"
)

// keysConfig says where the master keys of a region are, beside its own keyring.
type keysConfig struct {
	Default string         `yaml:"default,omitempty"` // driver of keys of which nothing else is said
	TTL     *time.Duration `yaml:"ttl,omitempty"`     // of data keys in memory
	Grace   *time.Duration `yaml:"grace,omitempty"`   // while their service does not answer
	Transit *transitConfig `yaml:"transit,omitempty"`
	Alibaba *alibabaConfig `yaml:"alibaba,omitempty"`
}

type transitConfig struct {
	Address   string `yaml:"address"`
	Mount     string `yaml:"mount,omitempty"`
	Namespace string `yaml:"namespace,omitempty"`
	TokenFile string `yaml:"token_file"`
	CA        string `yaml:"ca,omitempty"`
}

type alibabaConfig struct {
	Region     string `yaml:"region"`
	Endpoint   string `yaml:"endpoint,omitempty"`
	KeyID      string `yaml:"access_key_id"`
	SecretFile string `yaml:"access_key_secret_file"`
	CA         string `yaml:"ca,omitempty"`
}

// The names of drivers, as keys give them.
const (
	driverTransit = "transit"
	driverAlibaba = "alibaba"
)

// paths are those that are relative to the file of the configuration.
func (c *keysConfig) paths() (all []*string) {
	if c.Transit != nil {
		all = append(all, &c.Transit.TokenFile, &c.Transit.CA)
	}
	if c.Alibaba != nil {
		all = append(all, &c.Alibaba.SecretFile, &c.Alibaba.CA)
	}
	return all
}

func (c *keysConfig) check() error {
	for _, f := range []struct {
		key string
		d   *time.Duration
	}{{"ttl", c.TTL}, {"grace", c.Grace}} {
		if f.d != nil && (*f.d < time.Second || *f.d > 24*time.Hour) {
			return snapferry.Errorf(snapferry.Invalid, "keys.%s of %v is not within a second and a day", f.key, *f.d)
		}
	}
	return nil
}

// times are how long data keys are kept.
func (c *keysConfig) times() (k kms.Config) {
	if c.TTL != nil {
		k.TTL = *c.TTL
	}
	if c.Grace != nil {
		k.Grace = *c.Grace
	}
	return k
}

// drivers opens the drivers of key services. None is asked for anything.
func (c *keysConfig) drivers(log *slog.Logger) (map[string]kms.Driver, error) {
	all := map[string]kms.Driver{}
	if t := c.Transit; t != nil {
		ca, err := loadCA(t.CA)
		if err != nil {
			return nil, err
		}
		d, err := transitkms.Open(transitkms.Config{Address: t.Address, Mount: t.Mount, Namespace: t.Namespace, TokenFile: t.TokenFile, RootCAs: ca, Log: log})
		if err != nil {
			return nil, named("keys.transit", err)
		}
		all[driverTransit] = d
	}
	if x := c.Alibaba; x != nil {
		ca, err := loadCA(x.CA)
		if err != nil {
			return nil, err
		}
		secret, err := readSecret(x.SecretFile)
		if err != nil {
			return nil, err
		}
		d, err := alikms.Open(alikms.Config{Region: x.Region, Endpoint: x.Endpoint, AccessKeyID: x.KeyID, AccessKeySecret: secret, RootCAs: ca, Log: log})
		if err != nil {
			return nil, named("keys.alibaba", err)
		}
		all[driverAlibaba] = d
	}
	return all, nil
}

func named(key string, err error) error {
	return snapferry.Errorf(snapferry.KindOf(err), "%s: %w", key, err)
}

// loadCA reads certificates of authorities; nil for no path.
func loadCA(path string) (*x509.CertPool, error) {
	if path == "" {
		return nil, nil
	}
	p, err := os.ReadFile(path)
	if err != nil {
		return nil, fileError("read certificates", path, err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(p) {
		return nil, snapferry.Errorf(snapferry.Invalid, "%s has no certificates", path)
	}
	return pool, nil
}

func readSecret(path string) (string, error) {
	p, err := os.ReadFile(path)
	if err != nil {
		return "", fileError("read secret", path, err)
	}
	return string(bytes.TrimSpace(p)), nil
}
