{{/* The name everything begins with: at most 40 characters, so that what is made of it fits everywhere (63; 52 for a
StatefulSet). A longer one keeps 33 and a digest of all, so that two long ones do not meet. */}}
{{- define "streaming.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- $full := .Values.fullnameOverride -}}
{{- if not $full -}}
{{- $full = ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- end -}}
{{- if gt (len $full) 40 -}}
{{- printf "%s-%s" (trunc 33 $full | trimSuffix "-") (sha256sum $full | trunc 6) -}}
{{- else -}}
{{- $full -}}
{{- end -}}
{{- end -}}

{{/* (dict "root" $ "role" "node") -> the name of the role's objects. */}}
{{- define "streaming.name" -}}
{{- include "streaming.fullname" .root }}-{{ .role }}
{{- end -}}

{{/* (dict "root" $ "role" "node" "group" "blue") -> the name of the workload: a group has one of its own. */}}
{{- define "streaming.workload" -}}
{{- include "streaming.name" . }}{{ with .group }}-{{ . }}{{ end }}
{{- end -}}

{{- define "streaming.chart" -}}
{{- printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* What never changes: selectors are immutable. */}}
{{- define "streaming.releaseSelector" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "streaming.selector" -}}
{{ include "streaming.releaseSelector" .root }}
app.kubernetes.io/component: {{ .role }}
{{- with .group }}
milvus.io/resource-group: {{ . }}
{{- end }}
{{- end -}}

{{/* The resource groups of nodes, as contexts: what a group sets wins over what `node` has. Without groups, all nodes are one. */}}
{{- define "streaming.nodeGroups" -}}
{{- $groups := list -}}
{{- range .Values.node.resourceGroups -}}
{{- $groups = append $groups (dict "group" .name "values" (mergeOverwrite (deepCopy $.Values.node) (omit . "name"))) -}}
{{- end -}}
{{- toJson (default (list (dict "group" "" "values" .Values.node)) $groups) -}}
{{- end -}}

{{- define "streaming.labels" -}}
{{ include "streaming.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/part-of: streaming
helm.sh/chart: {{ include "streaming.chart" .root }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* (dict "root" $ "role" "node" "annotations" dict) -> metadata of an object, without its name. */}}
{{- define "streaming.metadata" -}}
namespace: {{ .root.Release.Namespace }}
labels:
  {{- include "streaming.labels" . | nindent 2 }}
{{- with merge (dict) (default (dict) .annotations) .root.Values.commonAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* (dict "root" $ "role" "node") -> the role's image. A tag or digest of its own takes the place of both. */}}
{{- define "streaming.image" -}}
{{- $common := .root.Values.image -}}
{{- $own := default dict (index .root.Values .role).image -}}
{{- $version := ternary $own $common (not (empty (or $own.tag $own.digest))) -}}
{{- $name := default $common.repository $own.repository -}}
{{- with default $common.registry $own.registry }}{{ $name = printf "%s/%s" . $name }}{{ end -}}
{{- if $version.digest -}}
{{- printf "%s@%s" $name $version.digest -}}
{{- else -}}
{{- printf "%s:%s" $name (default .root.Chart.AppVersion $version.tag) -}}
{{- end -}}
{{- end -}}

{{- define "streaming.serviceAccount" -}}
{{- $account := .Values.serviceAccount -}}
{{- default (ternary (include "streaming.fullname" .) "default" $account.create) $account.name -}}
{{- end -}}

{{- define "streaming.etcdEndpoints" -}}
{{- if .Values.etcd.bundled.enabled -}}
{{- printf "%s-etcd.%s.svc.%s:2379" (include "streaming.fullname" .) .Release.Namespace .Values.clusterDomain -}}
{{- else -}}
{{- join "," .Values.etcd.endpoints -}}
{{- end -}}
{{- end -}}

{{/* The backends that logs may be on, as a list. */}}
{{- define "streaming.backends" -}}
{{- toJson (uniq (prepend (default list .Values.storage.also) .Values.storage.type)) -}}
{{- end -}}

{{- define "streaming.objectStorageSecret" -}}
{{- default (printf "%s-s3" (include "streaming.fullname" .)) .Values.objectStorage.existingSecret -}}
{{- end -}}

{{/* The versions of APIs that this cluster has. */}}
{{- define "streaming.pdbVersion" -}}
{{- ternary "policy/v1" "policy/v1beta1" (semverCompare ">=1.21-0" .Capabilities.KubeVersion.Version) -}}
{{- end -}}

{{- define "streaming.hpaVersion" -}}
{{- ternary "autoscaling/v2" "autoscaling/v2beta2" (semverCompare ">=1.23-0" .Capabilities.KubeVersion.Version) -}}
{{- end -}}
