// A provider for tests: a resource of it does what a test asks for, at a time of the test's choosing.
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/hashicorp/terraform-plugin-framework/datasource"
	"github.com/hashicorp/terraform-plugin-framework/provider"
	providerschema "github.com/hashicorp/terraform-plugin-framework/provider/schema"
	"github.com/hashicorp/terraform-plugin-framework/providerserver"
	"github.com/hashicorp/terraform-plugin-framework/resource"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema/planmodifier"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema/stringplanmodifier"
	"github.com/hashicorp/terraform-plugin-framework/types"
)

// Set when it is linked.
var version = "0.0.0"

// Where configurations find it: registry.terrapool.test/test/probe.
const address = "registry.terrapool.test/test/probe"

func main() {
	options := providerserver.ServeOpts{Address: address}
	serve := func() provider.Provider { return &probe{} }
	if err := providerserver.Serve(context.Background(), serve, options); err != nil {
		log.Fatal(err)
	}
}

type probe struct{}

func (*probe) Metadata(_ context.Context, _ provider.MetadataRequest, answer *provider.MetadataResponse) {
	answer.TypeName = "probe"
	answer.Version = version
}

func (*probe) Schema(_ context.Context, _ provider.SchemaRequest, answer *provider.SchemaResponse) {
	answer.Schema = providerschema.Schema{}
}

func (*probe) Configure(context.Context, provider.ConfigureRequest, *provider.ConfigureResponse) {}

func (*probe) DataSources(context.Context) []func() datasource.DataSource { return nil }

func (*probe) Resources(context.Context) []func() resource.Resource {
	return []func() resource.Resource{func() resource.Resource { return &act{} }}
}

// What one resource is told to do when it is created, in this order.
type act struct{}

type wishes struct {
	ID      types.String `tfsdk:"id"`
	Version types.String `tfsdk:"version"`
	Sleep   types.String `tfsdk:"sleep"`
	Log     types.String `tfsdk:"log"`
	Say     types.Int64  `tfsdk:"say_lines"`
	Eat     types.Int64  `tfsdk:"eat"`
	Write   types.String `tfsdk:"write"`
	Partial types.Bool   `tfsdk:"partial"`
	Fail    types.String `tfsdk:"fail"`
}

func (*act) Metadata(_ context.Context, _ resource.MetadataRequest, answer *resource.MetadataResponse) {
	answer.TypeName = "probe_act"
}

func (*act) Schema(_ context.Context, _ resource.SchemaRequest, answer *resource.SchemaResponse) {
	keep := []planmodifier.String{stringplanmodifier.UseStateForUnknown()}
	again := []planmodifier.String{stringplanmodifier.RequiresReplace()}
	answer.Schema = schema.Schema{Attributes: map[string]schema.Attribute{
		"id":        schema.StringAttribute{Computed: true, PlanModifiers: keep},
		"version":   schema.StringAttribute{Computed: true, PlanModifiers: keep, Description: "This provider's own version."},
		"sleep":     schema.StringAttribute{Optional: true, PlanModifiers: again, Description: "As 1500ms."},
		"log":       schema.StringAttribute{Optional: true, PlanModifiers: again, Description: "Written to stderr, as a careless provider does."},
		"say_lines": schema.Int64Attribute{Optional: true, Description: "So many lines of 64 bytes in a warning."},
		"eat":       schema.Int64Attribute{Optional: true, Description: "So many MiB of memory, one every 50 ms, until it is told to end."},
		"write":     schema.StringAttribute{Optional: true, PlanModifiers: again, Description: "A file that is overwritten; `self` is this program."},
		"partial":   schema.BoolAttribute{Optional: true, Description: "Something was created before it failed."},
		"fail":      schema.StringAttribute{Optional: true, PlanModifiers: again, Description: "The creation fails with this text."},
	}}
}

func (*act) Create(ctx context.Context, request resource.CreateRequest, answer *resource.CreateResponse) {
	var w wishes
	answer.Diagnostics.Append(request.Plan.Get(ctx, &w)...)
	if answer.Diagnostics.HasError() {
		return
	}
	w.ID, w.Version = types.StringValue("made"), types.StringValue(version)
	if w.Sleep.ValueString() != "" {
		pause, err := time.ParseDuration(w.Sleep.ValueString())
		if err != nil {
			answer.Diagnostics.AddError("sleep", err.Error())
			return
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			answer.Diagnostics.AddError("Interrupted", "It was told to end while it slept.")
			return
		}
	}
	if text := w.Log.ValueString(); text != "" {
		fmt.Fprintln(os.Stderr, text)
		log.Println("[ERROR] " + text)
	}
	if lines := w.Say.ValueInt64(); lines > 0 {
		answer.Diagnostics.AddWarning("Many words", many(lines))
	}
	if err := eat(ctx, w.Eat.ValueInt64()); err != nil {
		answer.Diagnostics.AddError("Interrupted", err.Error())
		return
	}
	if path := w.Write.ValueString(); path != "" {
		if err := overwrite(path); err != nil {
			answer.Diagnostics.AddError("Not written", err.Error())
			return
		}
	}
	if text := w.Fail.ValueString(); text != "" {
		if w.Partial.ValueBool() {
			answer.Diagnostics.Append(answer.State.Set(ctx, &w)...)
		}
		answer.Diagnostics.AddError("Told to fail", text)
		return
	}
	answer.Diagnostics.Append(answer.State.Set(ctx, &w)...)
}

// Takes memory and keeps it to the end.
func eat(ctx context.Context, mebibytes int64) error {
	var taken [][]byte
	for ; mebibytes > 0; mebibytes-- {
		part := make([]byte, 1<<20)
		for i := range part {
			part[i] = byte(i)
		}
		taken = append(taken, part)
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("it was told to end with %d MiB", len(taken))
		}
	}
	runtime.KeepAlive(taken)
	return nil
}

// Lines of 64 bytes with their number, each told from every other.
func many(lines int64) string {
	var text strings.Builder
	text.Grow(int(lines) * 64)
	for i := int64(0); i < lines; i++ {
		fmt.Fprintf(&text, "%09d %s\n", i, strings.Repeat("x", 53))
	}
	return text.String()
}

// Writes to a file, and beside it.
func overwrite(path string) error {
	if path == "self" {
		self, err := os.Executable()
		if err != nil {
			return err
		}
		path = self
	}
	path, err := filepath.EvalSymlinks(path)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(filepath.Dir(path), "planted"), []byte("planted"), 0o755); err == nil {
		return nil
	} else if file, second := os.OpenFile(path, os.O_WRONLY, 0); second == nil {
		return file.Close()
	} else if second := os.Remove(path); second == nil {
		return nil
	} else {
		return err
	}
}

func (*act) Read(context.Context, resource.ReadRequest, *resource.ReadResponse) {}

func (*act) Update(ctx context.Context, request resource.UpdateRequest, answer *resource.UpdateResponse) {
	var w wishes
	answer.Diagnostics.Append(request.Plan.Get(ctx, &w)...)
	answer.Diagnostics.Append(answer.State.Set(ctx, &w)...)
}

func (*act) Delete(context.Context, resource.DeleteRequest, *resource.DeleteResponse) {}
