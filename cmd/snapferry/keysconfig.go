package main

import (
	"bytes"
	"context"
	"crypto/x509"
	"log/slog"
	"os"
	"time"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/internal/kms"
	"github.com/snapferry/snapferry/internal/kms/alikms"
	"github.com/snapferry/snapferry/internal/kms/awskms"
	"github.com/snapferry/snapferry/internal/kms/azurekms"
	"github.com/snapferry/snapferry/internal/kms/transitkms"
)

// keysConfig says where the master keys of a region are, beside its own keyring.
type keysConfig struct {
	Default string         `yaml:"default,omitempty"` // driver of keys of which nothing else is said
	TTL     *time.Duration `yaml:"ttl,omitempty"`     // of data keys in memory
	Grace   *time.Duration `yaml:"grace,omitempty"`   // while their service does not answer
	AWS     *awsConfig     `yaml:"aws,omitempty"`
	Azure   *azureConfig   `yaml:"azure,omitempty"`
	Transit *transitConfig `yaml:"transit,omitempty"`
	Alibaba *alibabaConfig `yaml:"alibaba,omitempty"`
}

type awsConfig struct {
	Region     string `yaml:"region"`
	Endpoint   string `yaml:"endpoint,omitempty"`
	KeyID      string `yaml:"access_key_id,omitempty"`
	SecretFile string `yaml:"secret_access_key_file,omitempty"`
	Profile    string `yaml:"profile,omitempty"` // instead of an access key
}

type azureConfig struct {
	Vault      string `yaml:"vault"`
	Tenant     string `yaml:"tenant"`
	ClientID   string `yaml:"client_id"`
	SecretFile string `yaml:"client_secret_file"`
	Authority  string `yaml:"authority,omitempty"`
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
	driverAWS     = "aws"
	driverAzure   = "azure"
	driverTransit = "transit"
	driverAlibaba = "alibaba"
)

// paths are those that are relative to the file of the configuration.
func (c *keysConfig) paths() (all []*string) {
	if c.AWS != nil {
		all = append(all, &c.AWS.SecretFile)
	}
	if c.Azure != nil {
		all = append(all, &c.Azure.SecretFile)
	}
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
func (c *keysConfig) drivers(ctx context.Context, log *slog.Logger) (map[string]kms.Driver, error) {
	all := map[string]kms.Driver{}
	add := func(name string, d kms.Driver, err error) error {
		if err != nil {
			return snapferry.Errorf(snapferry.KindOf(err), "keys.%s: %w", name, err)
		}
		all[name] = d
		return nil
	}
	if c.AWS != nil {
		d, err := c.AWS.open(ctx, log)
		if err := add(driverAWS, d, err); err != nil {
			return nil, err
		}
	}
	if c.Azure != nil {
		d, err := c.Azure.open(log)
		if err := add(driverAzure, d, err); err != nil {
			return nil, err
		}
	}
	if c.Transit != nil {
		d, err := c.Transit.open(log)
		if err := add(driverTransit, d, err); err != nil {
			return nil, err
		}
	}
	if c.Alibaba != nil {
		d, err := c.Alibaba.open(log)
		if err := add(driverAlibaba, d, err); err != nil {
			return nil, err
		}
	}
	return all, nil
}

func (c *awsConfig) open(ctx context.Context, log *slog.Logger) (*awskms.Driver, error) {
	cfg := awskms.Config{Region: c.Region, Endpoint: c.Endpoint, Log: log}
	var err error
	if c.KeyID == "" {
		cfg.Credentials, err = awskms.Chain(ctx, c.Region, c.Profile)
	} else {
		var secret string
		if secret, err = readSecret(c.SecretFile); err == nil {
			cfg.Credentials, err = awskms.Static(c.KeyID, secret, "")
		}
	}
	if err != nil {
		return nil, err
	}
	return awskms.New(cfg)
}

func (c *azureConfig) open(log *slog.Logger) (*azurekms.Driver, error) {
	secret, err := readSecret(c.SecretFile)
	if err != nil {
		return nil, err
	}
	cred, err := azurekms.ClientSecret(azurekms.ClientConfig{Tenant: c.Tenant, ClientID: c.ClientID, Secret: secret, Authority: c.Authority})
	if err != nil {
		return nil, err
	}
	return azurekms.New(azurekms.Config{Vault: c.Vault, Credential: cred, Log: log})
}

func (c *transitConfig) open(log *slog.Logger) (*transitkms.Driver, error) {
	ca, err := loadCA(c.CA)
	if err != nil {
		return nil, err
	}
	return transitkms.Open(transitkms.Config{Address: c.Address, Mount: c.Mount, Namespace: c.Namespace, TokenFile: c.TokenFile, RootCAs: ca, Log: log})
}

func (c *alibabaConfig) open(log *slog.Logger) (*alikms.Driver, error) {
	ca, err := loadCA(c.CA)
	if err != nil {
		return nil, err
	}
	secret, err := readSecret(c.SecretFile)
	if err != nil {
		return nil, err
	}
	return alikms.Open(alikms.Config{Region: c.Region, Endpoint: c.Endpoint, AccessKeyID: c.KeyID, AccessKeySecret: secret, RootCAs: ca, Log: log})
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
