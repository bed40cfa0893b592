// In the place of a Go plugin's verbs, for its own test suite: executes the program of that name in $PODWIRE_BIN.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
)

func execute(verb string, args *skel.CmdArgs) error {
	dir := os.Getenv("PODWIRE_BIN")
	path := args.Path
	if path == "" {
		path = dir
	}
	var stdout, stderr bytes.Buffer
	program := exec.Command(filepath.Join(dir, "@PLUGIN@"))
	program.Stdin, program.Stdout, program.Stderr = bytes.NewReader(args.StdinData), &stdout, &stderr
	program.Env = append(os.Environ(), "CNI_COMMAND="+verb, "CNI_CONTAINERID="+args.ContainerID, "CNI_NETNS="+args.Netns,
		"CNI_IFNAME="+args.IfName, "CNI_ARGS="+args.Args, "CNI_PATH="+path,
		// Some suites use one namespace for the node and the pod.
		"CNI_NETNS_OVERRIDE=1")
	if failed := program.Run(); failed != nil {
		return failure(failed, stdout.Bytes(), stderr.String())
	}
	_, err := os.Stdout.Write(stdout.Bytes())
	return err
}

// The error as the plugin's function would have returned it: suites compare texts.
func failure(failed error, stdout []byte, stderr string) error {
	printed := types.Error{}
	if json.Unmarshal(stdout, &printed) != nil || printed.Msg == "" {
		return fmt.Errorf("%v: %s %s", failed, stdout, stderr)
	}
	if printed.Details != "" {
		return errors.New(printed.Msg + "; " + printed.Details)
	}
	return errors.New(printed.Msg)
}

func cmdAdd(args *skel.CmdArgs) error    { return execute("ADD", args) }
func cmdDel(args *skel.CmdArgs) error    { return execute("DEL", args) }
func cmdCheck(args *skel.CmdArgs) error  { return execute("CHECK", args) }
func cmdStatus(args *skel.CmdArgs) error { return execute("STATUS", args) }
