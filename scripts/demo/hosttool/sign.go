package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"os"

	"github.com/attended-sysupgrade/sysup/scripts/demo/pack"
	"github.com/attended-sysupgrade/sysup/shared/usign"
)

// usignMain is usign -G -s SECRET -p PUBLIC -c COMMENT, usign -S -m MESSAGE -s SECRET -x SIGNATURE, or
// usign -F -p PUBLIC, which prints the fingerprint.
func usignMain(args []string) error {
	a := parse(args, "G", "S", "F")
	switch {
	case a.options["G"] != "":
		return generate(a.options["s"], a.options["p"], a.options["c"])
	case a.options["S"] != "":
		return signFile(a.options["s"], a.options["m"], a.options["x"])
	case a.options["F"] != "":
		return printFingerprint(a.options["p"])
	}
	return errors.New("one of -G, -S and -F must be given")
}

func generate(secret, public, comment string) error {
	key, err := usign.Generate(comment)
	if err != nil {
		return err
	}
	return errors.Join(os.WriteFile(secret, key.Marshal(), 0o600), os.WriteFile(public, key.Public().Marshal(), 0o644))
}

func signFile(secret, message, signature string) error {
	text, err := os.ReadFile(secret)
	if err != nil {
		return err
	}
	key, err := usign.ParseSecretKey(text)
	if err != nil {
		return err
	}
	data, err := os.ReadFile(message)
	if err != nil {
		return err
	}
	return os.WriteFile(signature, key.Sign(data).Marshal(), 0o644)
}

func printFingerprint(public string) error {
	text, err := os.ReadFile(public)
	if err != nil {
		return err
	}
	key, err := usign.ParsePublicKey(text)
	if err != nil {
		return err
	}
	_, err = os.Stdout.WriteString(key.Fingerprint.String() + "\n")
	return err
}

// apkKey is apk-key SECRET PUBLIC: it makes the key by which an apk-like tree signs its own index.
func apkKey(args []string) error {
	if len(args) != 2 {
		return errors.New("two file names are wanted: secret and public")
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	secret, err1 := pack.MarshalECKey(key)
	public, err2 := pack.MarshalECPublic(&key.PublicKey)
	return errors.Join(err1, err2, os.WriteFile(args[0], secret, 0o600), os.WriteFile(args[1], public, 0o644))
}

// fwtoolMain is fwtool -I METADATA IMAGE or fwtool -S SIGNATURE IMAGE: it appends one or the other.
func fwtoolMain(args []string) error {
	a := parse(args)
	if len(a.rest) != 1 {
		return errors.New("one image must be given")
	}
	image, err := os.ReadFile(a.rest[0])
	if err != nil {
		return err
	}
	tail, err := trailer(image, a.options["I"], a.options["S"])
	if err != nil {
		return err
	}
	f, err := os.OpenFile(a.rest[0], os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.Write(tail)
	return errors.Join(err, f.Close())
}

func trailer(image []byte, metadata, signature string) ([]byte, error) {
	if metadata == "" {
		content, err := os.ReadFile(signature)
		if err != nil {
			return nil, err
		}
		return usign.SignatureTrailer(bytes.NewReader(image), content)
	}
	content, err := os.ReadFile(metadata)
	return metadataTrailer(image, content), err
}

// metadataTrailer is a header of eight zeros (version and flags), the metadata, and fwtool's trailer:
// magic, CRC-32 of everything before without its last inversion, type 1, size of what was appended.
func metadataTrailer(image, metadata []byte) []byte {
	tail := append(make([]byte, 8), metadata...)
	crc := ^crc32.Update(crc32.ChecksumIEEE(image), crc32.IEEETable, tail)
	tail = append(tail, "FWx0"...)
	tail = binary.BigEndian.AppendUint32(tail, crc)
	tail = append(tail, 1, 0, 0, 0)
	return binary.BigEndian.AppendUint32(tail, uint32(len(tail)+4))
}
