-- Load for wrk: wrk ... -s load.lua URL -- CALL KEYS VALUE_BYTES
-- CALL is add or get (Lally and the floor), or one of the others' (webdis, etcd).

local function base64(text)
    local alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    local out = {}
    for at = 1, #text, 3 do
        local a, b, c = text:byte(at, at + 2)
        local bits = a * 65536 + (b or 0) * 256 + (c or 0)
        for place = 3, 0, -1 do
            local digit = math.floor(bits / 64 ^ place) % 64 + 1
            local is_padding = (place == 1 and not b) or (place == 0 and not c)
            out[#out + 1] = is_padding and "=" or alphabet:sub(digit, digit)
        end
    end
    return table.concat(out)
end

local calls = {
    add = function(key, value)
        return "POST", "/add", '{"key":"' .. key .. '","value":"' .. value .. '"}'
    end,
    get = function(key) return "POST", "/get", '{"key":"' .. key .. '"}' end,
    webdis_set = function(key, value) return "GET", "/SET/" .. key .. "/" .. value end,
    webdis_get = function(key) return "GET", "/GET/" .. key end,
    etcd_put = function(key, value)
        local body = '{"key":"' .. base64(key) .. '","value":"' .. base64(value) .. '"}'
        return "POST", "/v3/kv/put", body
    end,
    etcd_get = function(key) return "POST", "/v3/kv/range", '{"key":"' .. base64(key) .. '"}' end,
}

local requests, at = {}, 0

function init(args)
    local call, keys, value = calls[args[1]], tonumber(args[2]), string.rep("x", tonumber(args[3]))
    local headers = { ["Content-Type"] = "application/json" }
    for number = 1, keys do
        local method, path, body = call(string.format("key-%012d", number), value)
        requests[number] = wrk.format(method, path, headers, body)
    end
end

function request()
    at = at % #requests + 1
    return requests[at]
end
