{{/* (dict "root" $ "role" "node") -> the binary's configuration file, without secrets. What the chart decides wins. */}}
{{- define "streaming.config" -}}
{{- $values := .root.Values -}}
{{- $role := index $values .role -}}
{{- $s3 := $values.objectStorage -}}
{{- $bundled := $s3.bundled.enabled -}}
{{- $minio := dict
  "cloudProvider" (get (dict "s3compatible" "aws" "aws" "aws" "gcp" "gcp" "azure" "azure" "filesystem" "local") $s3.provider)
  "bucketName" $s3.bucket
  "rootPath" (ternary "/objects" $s3.rootPath (eq $s3.provider "filesystem"))
  "region" $s3.region
  "useVirtualHost" $s3.virtualHost
-}}
{{- if $bundled -}}
{{- $host := printf "%s-s3.%s.svc.%s" (include "streaming.fullname" .root) .root.Release.Namespace $values.clusterDomain -}}
{{- $minio = merge (dict "address" $host "port" 8333 "useSSL" false) $minio -}}
{{- else if has $s3.provider (list "aws" "s3compatible") -}}
{{- $host := default (printf "s3.%s.amazonaws.com" $s3.region) $s3.endpoint -}}
{{- $minio = merge (dict "address" $host "port" (int $s3.port) "useSSL" $s3.useSSL) $minio -}}
{{- else if and $s3.endpoint (has $s3.provider (list "gcp" "azure")) -}}
{{- $_ := set $minio "address" $s3.endpoint -}}
{{- end -}}
{{- with $s3.account }}{{ $_ := set $minio "accessKeyID" . }}{{ end -}}
{{- if $s3.caSecret }}{{ $_ := set $minio "ssl" (dict "tlsCACert" "/etc/streaming/s3-ca/ca.crt") }}{{ end -}}
{{- $ssl := dict "enabled" $values.etcd.tls.enabled -}}
{{- if $values.etcd.tls.enabled -}}
{{- $_ := set $ssl "tlsCACert" "/etc/streaming/etcd-tls/ca.crt" -}}
{{- if $values.etcd.tls.clientCertificate -}}
{{- $ssl = merge $ssl (dict "tlsCert" "/etc/streaming/etcd-tls/tls.crt" "tlsKey" "/etc/streaming/etcd-tls/tls.key") -}}
{{- end -}}
{{- end -}}
{{- $owned := dict
  "common" (dict "gracefulStopTimeout" (printf "%ds" (int $role.drain.timeoutSeconds)))
  "metastore" (dict "type" "etcd")
  "etcd" (dict
    "endpoints" (splitList "," (include "streaming.etcdEndpoints" .root))
    "rootPath" $values.etcd.rootPath
    "metaSubPath" $values.etcd.metaSubPath
    "auth" (dict "enabled" $values.etcd.auth.enabled)
    "ssl" $ssl)
  "admin" (dict "ip" $values.listenAddress "port" (int $role.ports.admin))
  "tls" (dict "enabled" $values.tls.enabled)
  "auth" (dict "enabled" $values.auth.enabled)
  "log" $values.log
  "woodpecker" (dict "storage" (dict "type" $values.storage.type "also" (default list $values.storage.also)))
-}}
{{- if eq (include "streaming.usesObjects" .) "true" -}}{{- $_ := set $owned "minio" $minio -}}{{- end -}}
{{- if $values.tls.enabled -}}
{{- $_ := set $owned "tls" (dict
  "enabled" true
  "cert" "/etc/streaming/tls/tls.crt"
  "key" "/etc/streaming/tls/tls.key"
  "ca" "/etc/streaming/tls/ca.crt"
  "serverName" (include "streaming.serverName" .root)
  "clientAuth" $values.tls.clientAuth
  "admin" (dict "enabled" $values.tls.admin.enabled)) -}}
{{- /* The default is not said: an image of before does not know the key. */}}
{{- if eq (default "" $values.tls.minVersion) "TLS1.3" -}}{{- $_ := set $owned.tls "minVersion" "TLS1.3" -}}{{- end -}}
{{- end -}}
{{- if $values.auth.enabled -}}
{{- $_ := set $owned "auth" (dict
  "enabled" true
  "tokensFile" "/etc/streaming/auth/tokens"
  "tokenFile" "/etc/streaming/auth/token") -}}
{{- end -}}
{{- $port := dict "ip" $values.listenAddress "port" (int (default 0 $role.ports.grpc)) -}}
{{- if eq .role "coord" -}}
{{- $_ := set $owned "rootCoord" $port -}}
{{- else if eq .role "node" -}}
{{- $_ := set $owned "streamingNode" $port -}}
{{- else if eq .role "replicate" -}}
{{- $targets := dict -}}
{{- range $id, $target := $role.targets -}}
{{- $place := printf "/etc/streaming/targets/%s" $id -}}
{{- $one := dict "serverName" (default "" $target.serverName) -}}
{{- if dig "caKey" "ca.crt" $target }}{{ $_ := set $one "ca" (printf "%s/ca.crt" $place) }}{{ end -}}
{{- if dig "tokenKey" "token" $target }}{{ $_ := set $one "tokenFile" (printf "%s/token" $place) }}{{ end -}}
{{- $_ := set $targets $id $one -}}
{{- end -}}
{{- with $targets }}{{ $_ := set $owned "replicate" (dict "targets" .) }}{{ end -}}
{{- else if eq .role "logstore" -}}
{{- $_ := set $owned.woodpecker "logstore" $port -}}
{{- $_ := set $owned.woodpecker.storage "rootPath" "/data" -}}
{{- end -}}
{{- /* Log stores get their space back when what they hold is in object storage. */}}
{{- $defaults := ternary (dict "woodpecker" (dict "maintenance" (dict "sealing" true))) dict (has "quorum" (include "streaming.backends" .root | fromJsonArray)) -}}
{{- /* What fits into the memory limits of values.yaml; the binary's own defaults are for a machine. */}}
{{- if eq .role "coord" -}}
{{- $memory := dict "maintenance" (dict "memory" "192MiB") "client" (dict "objectStorage" (dict "cacheSize" "32MiB") "sealed" (dict "cacheSize" "32MiB")) -}}
{{- $defaults = mergeOverwrite $defaults (dict "woodpecker" $memory) -}}
{{- with $values.node.resourceGroups -}}
{{- $_ := set $defaults "streaming" (dict "primaryResourceGroup" (first .).name) -}}
{{- end -}}
{{- else if eq .role "node" -}}
{{- $memory := dict "objectStorage" (dict "cacheSize" "128MiB") "sealed" (dict "cacheSize" "128MiB") -}}
{{- $streaming := dict "walWriteAheadBuffer" (dict "nodeCapacity" "384MiB") -}}
{{- /* Half of it has to take what one log has in flight. */}}
{{- if not (dig "woodpecker" "client" "segmentAppend" "maxInFlight" "" (mergeOverwrite (deepCopy $values.config) (deepCopy $role.config))) -}}
{{- $_ := set $streaming "nodeMaxHeld" "256MiB" -}}
{{- end -}}
{{- $defaults = mergeOverwrite $defaults (dict "woodpecker" (dict "client" $memory) "streaming" $streaming) -}}
{{- end -}}
{{- toYaml (mergeOverwrite $defaults (deepCopy $values.config) (deepCopy $role.config) $owned) -}}
{{- end -}}

{{/* Name of the variable that holds the address others dial. */}}
{{- define "streaming.advertiseVariable" -}}
{{- get (dict "coord" "STREAMING_CONF_ROOTCOORD_ADVERTISE" "node" "STREAMING_CONF_STREAMINGNODE_ADVERTISE" "logstore" "STREAMING_CONF_WOODPECKER_LOGSTORE_ADVERTISE") .role -}}
{{- end -}}

{{/* The ports of the collectors that the roles send traces to, as a list. The default one is in the pod itself. */}}
{{- define "streaming.collectorPorts" -}}
{{- $ports := list -}}
{{- range $role := list "coord" "node" "logstore" "replicate" -}}
{{- $trace := dig "trace" dict (mergeOverwrite (deepCopy $.Values.config) (deepCopy (default dict (index $.Values $role).config))) -}}
{{- $endpoint := dig "otlp" "endpoint" "" $trace -}}
{{- if and $endpoint (eq (default "noop" $trace.exporter) "otlp") -}}
{{- $given := regexFind ":[0-9]+(/|$)" $endpoint | trimPrefix ":" | trimSuffix "/" -}}
{{- $ports = append $ports (int (default (ternary "443" "80" (hasPrefix "https:" $endpoint)) $given)) -}}
{{- end -}}
{{- end -}}
{{- toJson (uniq $ports) -}}
{{- end -}}

{{/* The port of `host:port` or a URL. */}}
{{- define "streaming.portOf" -}}
{{- regexFind "[0-9]+$" (trimSuffix "/" .) | default "2379" -}}
{{- end -}}

{{/* The name of the first channel, as the binary makes it. */}}
{{- define "streaming.firstChannel" -}}
{{- $prefix := dig "msgChannel" "chanNamePrefix" (dict) .Values.config -}}
{{- if dig "common" "preCreatedTopic" "enabled" false .Values.config -}}
{{- first (default (list "") (dig "common" "preCreatedTopic" "names" list .Values.config)) -}}
{{- else -}}
{{- printf "%s-%s_0" (default "by-dev" $prefix.cluster) (default "rootcoord-dml" $prefix.rootCoordDml) -}}
{{- end -}}
{{- end -}}
